"""How the engine draws completions."""

from dataclasses import dataclass
from math import inf

from fathom.config.checks import require_positive

PENALTY_LIMIT = 2.0  # of presence and frequency penalties, both ways (OpenAI API)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a completion is drawn.

    The model's logits pass, in this order: repetition penalty, frequency and presence penalty, logit bias, ruled-out
    tokens (masks, stop ids before `min_tokens`), temperature, min_p, top_k, top_p. Each of the last three rules out
    among what those before it left.
    """

    temperature: float = 1.0  # 0 takes the likeliest token
    top_p: float = 1.0  # in (0, 1]; 1 truncates nothing
    top_k: int = 0  # 0 truncates nothing
    min_p: float = 0.0  # rules out tokens less likely than this share of the likeliest; 0 truncates nothing
    presence_penalty: float = 0.0  # taken off the logits of tokens that were drawn before (OpenAI API)
    frequency_penalty: float = 0.0  # taken off once for every time they were drawn (OpenAI API)
    repetition_penalty: float = 1.0  # of tokens in prompt and completion: positive logits / it, others * it (CTRL 4.1)
    max_tokens: int = 64
    min_tokens: int = 0  # so many tokens come before a stop id may be drawn or a stop string counts

    def __post_init__(self) -> None:
        for name in ("top_k", "max_tokens", "min_tokens"):
            if not isinstance(value := getattr(self, name), int):
                raise ValueError(f"sampling.{name}={value!r} is no whole number; give one")
        require_positive("sampling", max_tokens=self.max_tokens)
        if not 0 <= self.temperature < inf:
            raise ValueError(
                f"sampling.temperature={self.temperature} is not a finite number of at least 0; "
                "0 is greedy, 1 the model's own law"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p={self.top_p} lies outside (0, 1]; 1 truncates nothing")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"sampling.min_p={self.min_p} lies outside [0, 1]; 0 truncates nothing")
        if self.top_k < 0:
            raise ValueError(f"sampling.top_k={self.top_k} is negative; 0 truncates nothing")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -PENALTY_LIMIT <= (value := getattr(self, name)) <= PENALTY_LIMIT:
                raise ValueError(
                    f"sampling.{name}={value} lies outside [-{PENALTY_LIMIT:g}, {PENALTY_LIMIT:g}]; 0 is none"
                )
        if not 0 < self.repetition_penalty < inf:
            raise ValueError(
                f"sampling.repetition_penalty={self.repetition_penalty} is not a finite number above 0; 1 is none"
            )
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"sampling.min_tokens={self.min_tokens} lies outside [0, {self.max_tokens}], which ends at "
                "max_tokens; lower it or raise max_tokens"
            )

    @property
    def truncates(self) -> bool:
        """Whether unlikely tokens are ruled out."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0

    @property
    def penalises(self) -> bool:
        """Whether a token's odds depend on how often it came before."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1
