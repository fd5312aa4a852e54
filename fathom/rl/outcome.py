"""What a rollout earned, as a line of the metrics."""

import math
from collections.abc import Sequence

from fathom.eval.passk import Estimate, majority_at_k, pass_at_k
from fathom.rl.behaviour import behaviour
from fathom.rl.rollout import Episode, Rollout
from fathom.text.chat import parse_reply
from fathom.train.loop import Place


def rollout_metrics(place: Place, rollout: Rollout, group: int = 0, steps: bool = False) -> dict[str, float]:
    """Rewards and lengths of all that was sampled, dropped groups included, over all processes.

    Answers come in groups of `group`, for which pass@k and the majority vote are told; `steps` says that thinking is
    written as tries in steps, which are counted then.
    """
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
        "cut": rollout.cut,
        "unbegun": rollout.unbegun,
        **spread_sums(graded),
        **several_sums(graded, group),
        **behaviour([parse_reply(e.reply).thinking for e in episodes], steps),
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
    metrics |= {name: total[name] / answers for name in ("tries", "backtracks", "reflections") if name in total}
    metrics |= accuracy_band(total)
    for k in powers_of_two(group):
        if total[f"groups@{k}"]:
            metrics |= {f"{name}@{k}": total[f"{name}@{k}"] / total[f"groups@{k}"] for name in ("pass", "maj")}
    if total["cut"] or total["unbegun"]:
        metrics |= {"tail_cut": total["cut"], "tail_unbegun": total["unbegun"]}
    if rollout.drafted is not None:  # of this process: each chooses for itself whether drafts pay
        metrics["tokens_per_step"] = rollout.drafted
    if rollout.draft_acceptance is not None:
        metrics["draft_acceptance"] = rollout.draft_acceptance
    if n_right:
        metrics["length_correct"] = total["right_tokens"] / n_right
    if n_graded > n_right:
        metrics["length_wrong"] = total["wrong_tokens"] / (n_graded - n_right)
    return metrics


def spread_sums(graded: Sequence[Episode]) -> dict[str, float]:
    """Sums over groups from which the accuracy's standard error follows, answers of a group not being independent."""
    groups = [[float(e.reward.accuracy == 1) for e in members] for members in by_group(graded)]
    return {
        "groups": len(groups),
        "right_squares": math.fsum(sum(group) ** 2 for group in groups),
        "right_sizes": math.fsum(sum(group) * len(group) for group in groups),
        "size_squares": math.fsum(len(group) ** 2 for group in groups),
    }


def accuracy_band(total: dict[str, float]) -> dict[str, float]:
    """The 95 % interval of the accuracy, clustered by group as `clustered_mean` has it, from sums of all processes."""
    groups, answers = total["groups"], total["graded"]
    if groups < 2:
        return {}
    mean = total["right"] / answers
    squares = total["right_squares"] - 2 * mean * total["right_sizes"] + mean**2 * total["size_squares"]
    low, high = Estimate(mean, math.sqrt(groups / (groups - 1) * max(0.0, squares)) / answers).interval
    return {"accuracy_low": low, "accuracy_high": high}


def several_sums(graded: Sequence[Episode], group: int) -> dict[str, float]:
    """pass@k and maj@k added up over the groups with k graded answers, and how many these are."""
    sums: dict[str, float] = {}
    members = [list(each) for each in by_group(graded)]
    for k in powers_of_two(group):
        large = [each for each in members if len(each) >= k]
        right = [[float(e.reward.accuracy == 1) for e in each] for each in large]
        votes = [[parse_reply(e.reply).answer for e in each] for each in large]
        sums[f"groups@{k}"] = len(large)
        sums[f"pass@{k}"] = math.fsum(pass_at_k(len(each), round(sum(each)), k) for each in right)
        sums[f"maj@{k}"] = math.fsum(majority_at_k(*both, k) for both in zip(votes, right, strict=True))
    return sums


def by_group(episodes: Sequence[Episode]) -> list[list[Episode]]:
    """The episodes of every group."""
    found: dict[int, list[Episode]] = {}
    for episode in episodes:
        found.setdefault(episode.group, []).append(episode)
    return list(found.values())


def powers_of_two(most: int) -> list[int]:
    """2, 4, 8, ... up to `most`."""
    return [2**power for power in range(1, max(1, most).bit_length()) if 2**power <= most]
