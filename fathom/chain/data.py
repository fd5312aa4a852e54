"""What the chain learns from: a tokenizer, shards of text and worked arithmetic, solved problems."""

import shutil
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fathom.chain.stage import fingerprint
from fathom.config import Config
from fathom.runs import Run
from fathom.tasks import build
from fathom.text.arithmetic import arithmetic_documents
from fathom.text.corpus import read_documents
from fathom.text.dialogues import Dialogue, DialogueIds, encode_dialogue, expression_documents, worked_dialogues
from fathom.text.disjoint import given_away
from fathom.text.documents import encode_documents, split_documents
from fathom.text.packing import Batch, PackedLoader
from fathom.text.shards import Shard, open_shard, write_shard
from fathom.text.tokenizer import Tokenizer

TEXT, ARITHMETIC, EXPRESSIONS, VALIDATION = "text", "arithmetic", "expressions", "validation"


class Shards(NamedTuple):
    """The open shards of a run, and the share of pretraining tokens that each gives."""

    training: list[Shard]
    shares: list[float]
    validation: Shard | None


def shard_path(run: Run, name: str) -> Path:
    return run.shards_dir / f"{name}.bin"


def prepare_text(config: Config, run: Run) -> dict[str, object]:
    """Train the tokenizer and write the shards; counts for the ledger.

    Raises ValueError should a document of the mixture state a problem of the task: pretraining is to hold none.
    """
    text = config.text
    documents = split_documents(read_documents(text.sources), text.validation_share)
    arithmetic = arithmetic_documents(
        config.seed, text.arithmetic_documents, text.arithmetic_max, config.task.operators, config.task
    )
    expressions = expression_documents(config.seed, text.expression_documents, config.task)
    leaked = given_away(chain(arithmetic, (f"{d.question}\n{d.reply}" for d in expressions)), config.task)
    if leaked:
        raise ValueError(f"{len(leaked)} documents of the pretraining mixture state problems of the task; report this")
    tokenizer = Tokenizer.train(chain(documents.train, arithmetic[:2000]), text.vocab_size)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"text.vocab_size={tokenizer.vocab_size} exceeds model.vocab_size={config.model.vocab_size}; "
            "give the model at least as many entries"
        )
    shutil.rmtree(run.shards_dir, ignore_errors=True)  # shards of another tokenizer would be refused later
    run.shards_dir.mkdir(parents=True)
    tokenizer.save(run.tokenizer_path)
    rate = text.fim_rate
    shards = {
        TEXT: write_shard(
            shard_path(run, TEXT), encode_documents(tokenizer, documents.train, rate, config.seed), tokenizer
        ),
        ARITHMETIC: write_shard(shard_path(run, ARITHMETIC), encode_documents(tokenizer, arithmetic), tokenizer),
        EXPRESSIONS: write_shard(shard_path(run, EXPRESSIONS), _encode(tokenizer, expressions), tokenizer),
    }
    if documents.validation:
        kept = encode_documents(tokenizer, documents.validation)
        shards[VALIDATION] = write_shard(shard_path(run, VALIDATION), kept, tokenizer)
    return {
        "tokens": sum(len(shard.tokens) for shard in shards.values()),
        "tokens_of": {name: len(shard.tokens) for name, shard in shards.items()},
        "documents_of": {name: len(shard.borders) - 1 for name, shard in shards.items()},
        "vocabulary": tokenizer.vocab_size,
        "tokenizer_hash": tokenizer.hash,
        "problems_given_away": len(leaked),
    }


def _encode(tokenizer: Tokenizer, dialogues: Sequence[Dialogue]) -> Iterator[np.ndarray]:
    return (np.concatenate(encode_dialogue(tokenizer, dialogue)) for dialogue in dialogues)


def open_text(config: Config, run: Run, tokenizer: Tokenizer) -> Shards:
    """Open what `prepare_text` wrote; a source whose share is zero is left out."""
    text = config.text
    rest = 1 - text.arithmetic_share - text.expression_share
    mixture = {TEXT: rest, ARITHMETIC: text.arithmetic_share, EXPRESSIONS: text.expression_share}
    names = [name for name, share in mixture.items() if share > 0]
    validation = shard_path(run, VALIDATION)
    return Shards(
        [open_shard(shard_path(run, name), tokenizer) for name in names],
        [mixture[name] for name in names],
        open_shard(validation, tokenizer) if validation.exists() else None,
    )


def validation_batches(shard: Shard | None, rows: int, seq_len: int, rank: int, size: int) -> list[Batch]:
    """This process's part of up to `rows` rows of validation text."""
    if shard is None:
        return []
    available = min(rows, max(size, len(shard.tokens) // seq_len)) // size * size
    loader = PackedLoader([shard], [1.0], seq_len=seq_len, batch_rows=available, seed=0, rank=rank, world=size)
    return [loader.batch(0)]


def solved_path(config: Config, run: Run, tokenizer: Tokenizer) -> Path:
    """The file of the cold-start set, named by all that it follows from."""
    key = fingerprint({"task": config.task, "seed": config.seed, "tokenizer": tokenizer.hash})
    return run.shards_dir / f"solved-{key[:16]}.npz"


def solved_problems(config: Config, run: Run, tokenizer: Tokenizer) -> list[DialogueIds]:
    """The cold-start set: worked solutions of training problems, written once and read by every process."""
    file = solved_path(config, run, tokenizer)
    if not file.exists():
        dialogues = worked_dialogues(tokenizer, build(config.task), config.seed, config.task.demonstrations)
        lengths = [(len(d.prompt), len(d.reply)) for d in dialogues]
        flat = np.concatenate([part for d in dialogues for part in d]).astype(
            np.uint16 if tokenizer.vocab_size < 1 << 16 else np.uint32
        )
        file.parent.mkdir(exist_ok=True)  # a run that begins with a published model has no shards
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, flat=flat, lengths=np.array(lengths, np.int64))
        partial.replace(file)
    with np.load(file) as arrays:
        flat, lengths = arrays["flat"].astype(np.int64), arrays["lengths"]
    parts = np.split(flat, np.cumsum(lengths.ravel())[:-1])
    return [DialogueIds(prompt, reply) for prompt, reply in zip(parts[::2], parts[1::2], strict=True)]
