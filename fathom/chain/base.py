"""A published model as the beginning of a run: its weights, its tokenizer, and how it is asked."""

import logging
import shutil
from pathlib import Path

import torch

from fathom.chain.stage import Record, file_hash, run_stage
from fathom.checkpoint.find import find_checkpoint
from fathom.checkpoint.hub import load_published, read_config
from fathom.checkpoint.state import require_config
from fathom.checkpoint.tokenizer import FILES, published_stops, tokenizer_file
from fathom.config import Config
from fathom.infer.speaker import knows_template
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.runs import Run
from fathom.text.adopted import adopted
from fathom.text.special import ANSWER, THINK
from fathom.text.template import ChatTemplate
from fathom.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def begins_with_base(config: Config, run: Run) -> bool:
    """Whether the run trains on from the checkpoint in `config.init` instead of pretraining by itself."""
    return bool(config.init) and not run.read_ledger("pretrain")


def adopt(world: World, config: Config, run: Run) -> Record:
    """Take over the tokenizer of the checkpoint in `config.init`, with the words that will stand around questions."""
    source = find_checkpoint(Path(config.init))
    weights = file_hash(*source.glob("*.safetensors"), source / "config.json") if world.is_main else None

    def work() -> Record:
        if world.is_main:
            _take_tokenizer(source, run, config.text.prompt)
        world.barrier()
        tokenizer = Tokenizer.load(run.tokenizer_path).hash
        return {"base": config.init, "tokenizer_hash": tokenizer, "weights_hash": weights}

    inputs: dict[str, object] = {"base": weights, "prompt": config.text.prompt}
    return run_stage(run, world, config, "base", inputs, work, run.tokenizer_path)


def base_model(config: Config, device: torch.device) -> Transformer:
    """The model of the checkpoint in `config.init`, which must be the one that the config describes."""
    source = find_checkpoint(Path(config.init))
    require_config(source, config.model)
    return load_published(source, device=device)


def _take_tokenizer(source: Path, run: Run, prompt: str) -> None:
    file = tokenizer_file(source)
    for name in FILES:
        if file.with_name(name).exists():
            shutil.copyfile(file.with_name(name), run.path / name)
    tokenizer = Tokenizer.load(file)
    if knows_template(tokenizer):
        if prompt:
            raise ValueError(f"text.prompt={prompt!r} means nothing to {source}, which has a template; leave it out")
        return
    if tokenizer.adopted and not prompt:  # of another run, whose prompt.json is copied by now
        return
    ends = [tokenizer.entry(token) for token in published_stops(read_config(source), source)]
    Tokenizer(tokenizer.json, adopted(ChatTemplate.beside(file), ends, prompt)).save(run.tokenizer_path)
    missing = [tag for tag in (THINK, ANSWER) if len(tokenizer.encode_template(tag, whole=True)) > 1]
    if missing:
        log.info("the tokenizer has no entries for %s: these tags are written as plain text", " and ".join(missing))
