"""What `fathom bench serve` is started with."""

from dataclasses import dataclass
from pathlib import Path

from fathom.config.checks import require_positive


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What is asked, how often, and how good answers have to be."""

    key: str = ""  # API key
    model: str = ""  # model id (the first that is listed)
    rate: float = 0.0  # requests a second that arrive at random (Poisson), whatever the server does; 0: --clients
    clients: int = 8  # who each wait for an answer and ask again, where there is no --rate
    requests: int = 100  # that count
    warm_up: int = 2  # requests before, which do not
    prompt_tokens: tuple[int, ...] = (128,)  # lengths of random prompts, in turns; what the server counted is reported
    file: Path | None = None  # prompts instead: .jsonl with prompt or messages (max_tokens if wanted), or one a line
    max_tokens: int = 128  # of each answer
    to_the_end: bool = True  # answers end at max_tokens alone (ignore_eos), so that lengths are known
    stream: bool = True  # without it there is no first token to time
    temperature: float = 1.0
    seed: int = 0  # of arrivals, prompts and answers
    timeout_s: float = 300.0  # of one request
    processes: int = 1  # that ask; more where one is too slow for the load
    ttft_ms: float = 0.0  # an answer is good whose first token came within; 0 asks nothing
    token_ms: float = 0.0  # and whose further tokens took no longer on average
    e2e_ms: float = 0.0  # and which was whole within
    config: Path | None = None  # config.json or run of the model, where the server does not tell it
    hardware: str = ""  # what it runs on, such as 8xH200; measured where a server of Fathom runs on this CPU

    def __post_init__(self) -> None:
        require_positive(
            "bench serve",
            clients=self.clients,
            requests=self.requests,
            max_tokens=self.max_tokens,
            timeout_s=self.timeout_s,
            processes=self.processes,
        )
        if not self.prompt_tokens or min(self.prompt_tokens) < 1:
            raise ValueError(f"prompt_tokens={self.prompt_tokens} holds a length below 1; give 1 or more each")
        for name in ("rate", "warm_up", "temperature", "ttft_ms", "token_ms", "e2e_ms"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative; give 0 or more")
        if not self.stream and (self.ttft_ms or self.token_ms):
            raise ValueError("ttft_ms and token_ms need the moments of tokens; leave out --no_stream, or use e2e_ms")
