"""What a run's newest model learned, in two sentences that claim no more than the run's records do."""

from fathom.chain.stage import Record, fingerprint
from fathom.chain.stages import evaluation_inputs, last_line
from fathom.checkpoint.find import newest_stage
from fathom.plan.count import main_parameters, mtp_parameters
from fathom.report.findings import describe_task
from fathom.report.units import percent, size
from fathom.runs import Run

TRAINING = {
    "grpo": "was trained by reinforcement learning on one task",
    "sft": "was fine-tuned on worked solutions of one task",
    "pretrain": "has read text and worked arithmetic, and was not yet trained on its task",
}


def introduce(run: Run) -> str:
    """The task and its limits, then the accuracy on held-out problems if it was measured for these very weights."""
    stage, config = newest_stage(run), run.config
    parameters = size(main_parameters(config.model) + mtp_parameters(config.model))
    task = describe_task(config.task)
    first = f"This model of {parameters} parameters {TRAINING[stage]}: {task}; expect nothing else of it."
    score = measured_score(run, stage)
    if score is None:
        return f"{first} How many held-out problems it solves was not measured (`fathom eval {run.path}` does that)."
    return (
        f"{first} Of {score['problems']:,} problems held out of its training it solves {percent(score['sampled'])} "
        f"when answers are sampled (95 % interval {percent(score['sampled_low'])} to {percent(score['sampled_high'])}) "
        f"and {percent(score['greedy'])} when each token is the likeliest one."
    )


def measured_score(run: Run, stage: str) -> Record | None:
    """The score of what `stage` left, on the run's own task; None where only other weights or tasks were scored."""
    inputs = evaluation_inputs(run.config, last_line(run, stage)["weights_hash"])
    for line in reversed(run.read_ledger()):
        if line.get("score") and line["key"] == fingerprint({"stage": line["stage"], **inputs}):
            return line["score"]
    return None
