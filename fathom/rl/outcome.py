"""What a rollout earned, as a line of the metrics."""

from fathom.rl.rollout import Rollout
from fathom.train.loop import Place


def rollout_metrics(place: Place, rollout: Rollout) -> dict[str, float]:
    """Rewards and lengths of all that was sampled, dropped groups included, over all processes."""
    episodes = rollout.sampled
    graded = [e for e in episodes if e.reward.accuracy is not None]
    right = [e for e in graded if e.reward.accuracy == 1]
    wrong = [e for e in graded if e.reward.accuracy != 1]
    own = {
        "answers": len(episodes),
        "graded": len(graded),
        "right": len(right),
        "reward": sum(e.total for e in graded),
        "format": sum(e.reward.format for e in episodes),
        "language": sum(e.reward.language for e in episodes),
        "soundness": sum(e.reward.soundness for e in episodes),
        "tokens": rollout.tokens,
        "right_tokens": sum(len(e.completion) for e in right),
        "wrong_tokens": sum(len(e.completion) for e in wrong),
        "truncated": sum(e.truncated for e in episodes),
        "timeouts": sum(e.reward.failure == "timeout" for e in episodes),
        "crashes": sum(e.reward.failure == "crash" for e in episodes),
        "dropped": rollout.groups_dropped,
        "kept": len({e.group for e in rollout.kept}),
    }
    total = dict(zip(own, place.world.sum_numbers(*own.values()), strict=True))
    answers, n_graded, n_right = total["answers"], total["graded"], total["right"]
    metrics = {
        "reward": total["reward"] / max(1, n_graded),
        "accuracy": n_right / max(1, n_graded),
        "format": total["format"] / answers,
        "language": total["language"] / answers,
        "soundness": total["soundness"] / answers,
        "length": total["tokens"] / answers,
        "truncated": total["truncated"] / answers,
        "ungraded": answers - n_graded,
        "timeouts": total["timeouts"],
        "crashes": total["crashes"],
        "groups_kept": total["kept"],
        "groups_dropped": total["dropped"],
        "rollout_tokens": total["tokens"],
    }
    if n_right:
        metrics["length_correct"] = total["right_tokens"] / n_right
    if n_graded > n_right:
        metrics["length_wrong"] = total["wrong_tokens"] / (n_graded - n_right)
    return metrics
