# pyright: basic, reportMissingImports=false
"""Fathom's models in EleutherAI's lm-evaluation-harness (extra `eval`): its tasks, asked of a run or a checkpoint.

from fathom.eval.harness import FathomLM
lm_eval.simple_evaluate(FathomLM("models/qwen"), tasks=["arc_easy"])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.checkpoint.tokenizer import CHAT_TEMPLATE
from fathom.config import SamplingConfig
from fathom.eval.likelihood import Ids, rolling_windows, score_continuations
from fathom.infer.offline import ROWS, Engine, seed_of
from fathom.infer.request import Request
from fathom.text.special import BOS, EOS, THINK_END
from fathom.text.template import ChatTemplate

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table
except ImportError as error:
    raise ValueError("tasks of lm-eval need the extra `eval`: pip install 'fathomlm[eval]'") from error

MAX_TOKENS = 256  # of a reply whose task sets no limit
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one thing
OPTIONS = ("until", "do_sample", "temperature", "top_p", "top_k", *LENGTHS)


@register_model("fathom")
class FathomLM(TemplateLM):
    """A model behind the harness's interface: likelihoods by whole passes, replies by the engine.

    `pretrained` is a run, a checkpoint, or an engine that has loaded one. Prompts are read as transformers reads them:
    special tokens spelled out count as such, and one begin-of-sequence token opens a text where the model was trained
    so. Replies are drawn with `seed` where a task samples.
    """

    def __init__(
        self, pretrained: Path | str | Engine, batch_size: int | str = ROWS, device: str = "auto", seed: int = 0
    ) -> None:
        super().__init__()
        rows = batch_size if isinstance(batch_size, int) else int(batch_size) if batch_size.isdigit() else ROWS
        self.engine = pretrained if isinstance(pretrained, Engine) else Engine(pretrained, rows=rows, device=device)
        self.speaker, self.seed = self.engine.speaker, seed
        self.max_length = self.engine.model.config.max_position_embeddings
        self._device = self.engine.model.embedding.weight.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        if not self.speaker.stop_ids:
            raise ValueError(f"{self.speaker.name} names no end-of-sequence token; add eos_token_id to its config.json")
        return min(self.speaker.stop_ids)

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of a text without a context."""
        begin = self._begin
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """What the harness keys its caches by."""
        return f"fathom-{self.engine.tokenizer.hash[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Ids of a text; it begins with begin-of-sequence, once, unless `add_special_tokens` is False."""
        ids = self.engine.tokenizer.encode_template(string, whole=add_special_tokens is False)
        if add_special_tokens is False:
            return ids
        if self.speaker.uses_template and ids[:1] != [self._begin]:
            return [self.prefix_token_id, *ids]
        return ids[1:] if self._begin is not None and ids[:2] == [self._begin] * 2 else ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The dialogue as a prompt, in the model's own template."""
        template = self._template
        if template is None:
            raise ValueError(f"{self.speaker.name} has no chat template; leave --apply_chat_template out")
        return template.render(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The source of the template, for the harness's record."""
        return self._template.source if chat_template and self._template else ""

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's context."""
        pairs: list[tuple[Ids, Ids]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = list(rolling_windows(ids, self.prefix_token_id, self.max_length))
            pairs += windows
            owners += [owner] * len(windows)
        totals = [0.0] * len(requests)
        for place, likelihood in score_continuations(self.engine.model, pairs):
            totals[owners[place]] += likelihood.logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        found: dict[int, tuple[float, bool]] = {}
        for place, likelihood in score_continuations(self.engine.model, [request[1:] for request in requests]):
            found[place] = likelihood.logprob, likelihood.is_greedy
            if requests[place][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[place][0], found[place])
        return [found[place] for place in range(len(requests))]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The reply to each prompt, cut in front of the first of its stop texts; thinking is taken off.

        A prompt that leaves no room for the reply loses its beginning.
        """
        asked = [self._request(place, *request.args) for place, request in enumerate(requests)]
        replies: dict[int, str] = {}
        for place, outcome in self.engine.complete(asked):
            if isinstance(outcome, ValueError):
                raise outcome
            tokens = [token for token in outcome[0].tokens if token not in self.speaker.stop_ids]
            text = self.engine.tokenizer.decode(tokens)
            if self.speaker.opens_thinking(asked[place].prompt):
                text = text.rpartition(THINK_END)[2].lstrip()
            replies[place] = cut_at(text, stop_texts(requests[place].args[1]))
            self.cache_hook.add_partial("generate_until", requests[place].args, replies[place])
        return [replies[place] for place in range(len(requests))]

    def _request(self, place: int, context: str, options: dict[str, Any]) -> Request:
        law = sampling_of(options)
        if law.max_tokens >= self.max_length:
            raise ValueError(
                f"the task asks for replies of {law.max_tokens} tokens, but the model's context holds "
                f"{self.max_length}; set max_gen_toks lower in its generation_kwargs"
            )
        prompt = self.tok_encode(context)[law.max_tokens - self.max_length :] or [self.prefix_token_id]
        return Request(prompt, law, seed_of(self.seed, place), self.speaker.stop_ids)

    @property
    def _begin(self) -> int | None:
        return self.engine.tokenizer.bos_id if self.speaker.uses_template else self.engine.model.config.bos_token_id

    @property
    def _template(self) -> ChatTemplate | None:
        if self.speaker.uses_template:
            return ChatTemplate(CHAT_TEMPLATE, {"bos_token": BOS, "eos_token": EOS})
        return self.speaker.chat


def sampling_of(options: dict[str, Any]) -> SamplingConfig:
    """How a task's replies are drawn: greedily unless it samples. Raises ValueError for an option unknown here."""
    if unknown := [name for name in options if name not in OPTIONS]:
        raise ValueError(f"the task's generation_kwargs name {unknown[0]!r}, which Fathom does not honour")
    temperature = float(options.get("temperature") or 0.0)
    if not options.get("do_sample", temperature > 0):
        temperature = 0.0
    elif "temperature" not in options:
        temperature = 1.0
    return SamplingConfig(
        temperature=temperature,
        top_p=float(options.get("top_p", 1.0)),
        top_k=int(options.get("top_k", 0)),
        max_tokens=int(next((options[name] for name in LENGTHS if name in options), MAX_TOKENS)),
    )


def stop_texts(options: dict[str, Any]) -> list[str]:
    """The texts that end a reply."""
    until = options.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of the stop texts; an empty one stops nothing."""
    for stop in filter(None, stops):
        text = text.partition(stop)[0]
    return text


@dataclass(frozen=True)
class Outcome:
    """What the harness found."""

    table: str  # its own, in Markdown
    record: dict[str, Any]  # results, versions and few-shot counts by task


def run_tasks(
    engine: Engine, tasks: Sequence[str], path: Path | None, few_shot: int | None, limit: int | None, seed: int
) -> Outcome:
    """Run tasks of the harness, and of the directory `path`. Raises ValueError for a task that it does not know."""
    manager = TaskManager(include_path=None if path is None else str(path))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ValueError(f"lm-eval has no task {unknown[0]!r}; `lm_eval ls tasks` lists those there are")
    found = simple_evaluate(
        FathomLM(engine, seed=seed), tasks=list(tasks), num_fewshot=few_shot, limit=limit, task_manager=manager
    )
    kept = {name: found.get(name) for name in ("results", "versions", "n-shot", "n-samples")}
    return Outcome(make_table(found), kept)
