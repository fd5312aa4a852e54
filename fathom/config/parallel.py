"""How a training step is spread over processes."""

from dataclasses import dataclass
from typing import Literal

from fathom.config.checks import require_choice, require_positive


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Ways of every kind of parallelism; data x shard x context x pipeline processes, expert among the first three.

    The processes are torchrun's, or this machine's `workers` on its CPU, `gpu_workers` on its GPUs.
    """

    data: int = 0  # replicas of the training state, each with its own rows; 0: as many as the processes allow
    shard: int = 1  # processes, each with its own rows, that share the training state (FSDP, ZeRO)
    zero: Literal[1, 3] = 1  # what they share: masters, moments and gradient sums; 3 also the weights (V3 3.2 uses 1)
    expert: int = 1  # processes over which the routed experts are spread
    pipeline: int = 1  # processes over which the layers are spread
    context: int = 1  # processes over which each row is spread
    schedule: Literal["1f1b", "zbv", "dualpipev"] = "1f1b"  # of the pipeline; the latter two hold two stages a process
    recompute: Literal["none", "selective", "full"] = "none"  # selective: norms, expanded latents, SwiGLU (V3 3.2.3)
    fp8_dispatch: bool = False  # tokens travel to their experts as e4m3 in 1 x 128 tiles (V3 3.3.3)
    breakdown_every: int = 0  # steps between looks at where each process's time goes; 0 never
    profile_steps: str = ""  # steps to trace, such as 10:12 for the two behind the tenth; files for Chrome's viewer
    balance_devices: int = 0  # devices for which metrics say what redundant experts would gain (V3 3.4); 0 says nothing
    checkpoint: Literal["auto", "sharded"] = "auto"  # sharded: in parts even where one process holds the whole state

    def __post_init__(self) -> None:
        require_positive("parallel", shard=self.shard, expert=self.expert, pipeline=self.pipeline, context=self.context)
        require_choice("parallel", "schedule", self.schedule, ("1f1b", "zbv", "dualpipev"))
        require_choice("parallel", "recompute", self.recompute, ("none", "selective", "full"))
        require_choice("parallel", "checkpoint", self.checkpoint, ("auto", "sharded"))
        if self.data < 0:
            raise ValueError(
                f"parallel.data={self.data} is negative; give a number of replicas, or 0 for all there are"
            )
        if self.zero not in (1, 3):
            raise ValueError(
                f"parallel.zero={self.zero} is neither 1 nor 3; choose 1 (masters and moments) or 3 (weights too)"
            )

        for name in ("breakdown_every", "balance_devices"):
            if getattr(self, name) < 0:
                raise ValueError(f"parallel.{name}={getattr(self, name)} is negative; give 0 for none, or a number")
        if self.profile_steps and not self.traced_steps:
            raise ValueError(
                f"parallel.profile_steps={self.profile_steps!r} names no steps; give the first and the end, as in 10:12"
            )

    @property
    def traced_steps(self) -> range:
        """The steps to trace, counted from 0."""
        first, _, stop = self.profile_steps.partition(":")
        return range(int(first), int(stop)) if first.isdecimal() and stop.isdecimal() else range(0)

    @property
    def model_ways(self) -> int:
        """Processes that one replica takes."""
        return self.shard * self.pipeline * self.context
