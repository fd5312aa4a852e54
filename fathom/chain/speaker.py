"""A trained model that can be asked: the newest of a run, or a checkpoint with its tokenizer."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fathom.chain.stages import model_of_stage
from fathom.chain.verbs import newest_stage
from fathom.checkpoint.find import find_checkpoint
from fathom.checkpoint.hub import load_published
from fathom.config import SamplingConfig
from fathom.infer import Request
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.runs import Run
from fathom.text.chat import render_prompt
from fathom.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Speaker:
    """A model and the tokenizer it was trained with."""

    model: Transformer
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    uses_template: bool  # questions are put in the chat template; other models continue plain text

    def ask(self, question: str, sampling: SamplingConfig) -> Request:
        """A request for one reply, with random numbers of its own."""
        prompt = render_prompt(self.tokenizer, question) if self.uses_template else self.tokenizer.encode(question)
        return Request(prompt, sampling, seed=secrets.randbits(48), stop_ids=self.stop_ids)

    def read(self, tokens: Sequence[int]) -> str:
        """The text of a completion without the token that ended it."""
        return self.tokenizer.decode([token for token in tokens if token not in self.stop_ids])


def speaker_of_run(world: World, run: Run) -> Speaker:
    """The newest trained model of a run."""
    model = model_of_stage(run.config, run, world, newest_stage(run))
    tokenizer = Tokenizer.load(run.tokenizer_path)
    return Speaker(model, tokenizer, frozenset({tokenizer.eos_id}), uses_template=True)


def speaker_of_checkpoint(world: World, path: Path) -> Speaker:
    """The model of an imported, exported or training checkpoint; ValueError where no tokenizer goes with it."""
    model = load_published(find_checkpoint(path), device=world.device)
    files = [path / "tokenizer.json", path.parent.parent / "tokenizer.json"]  # RUN/STAGE/step_000050 has its run's
    found = [file for file in files[: 2 if path.name.startswith("step_") else 1] if file.exists()]
    if not found:
        raise ValueError(f"{path} holds no tokenizer.json; put the one that the model was trained with beside it")
    tokenizer = Tokenizer.load(found[0])
    if _knows_template(tokenizer):
        return Speaker(model, tokenizer, frozenset({tokenizer.eos_id}), uses_template=True)
    return Speaker(model, tokenizer, _published_stops(model, path), uses_template=False)


def _knows_template(tokenizer: Tokenizer) -> bool:
    try:
        return tokenizer.eos_id not in render_prompt(tokenizer, "")
    except ValueError:  # an entry is missing
        return False


def _published_stops(model: Transformer, path: Path) -> frozenset[int]:
    """End-of-sequence ids: those of generation_config.json, where several may stand, else the config's."""
    stops: int | list[int] | None = model.config.eos_token_id
    file = path / "generation_config.json"
    if file.exists():
        stops = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id", stops)
    return frozenset([] if stops is None else [stops] if isinstance(stops, int) else stops)
