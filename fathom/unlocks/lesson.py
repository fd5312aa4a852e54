"""What cards about training share: a small model, trained by the product's own loop on one stated stream of tokens."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fathom.config import ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from fathom.config.model import AttentionConfig, MoEConfig
from fathom.demo import RUN
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.plan.count import main_parameters
from fathom.runs import Record, Run
from fathom.text.corpus import read_documents
from fathom.text.documents import encode_documents, split_documents
from fathom.text.packing import PackedLoader
from fathom.text.shards import open_shard, write_shard
from fathom.text.tokenizer import Tokenizer
from fathom.train.loop import Place, train_language
from fathom.unlocks.experiment import Context, Size

STAGE = "pretrain"
KEPT = 0.1  # share of the documents that no model trains on
STREAM = {"documents": "sample", "tokenizer": "of the demo model", "kept": KEPT}
STREAM_TEXT = "the sample text that ships with Fathom, packed; a tenth of its documents is kept for the validation loss"


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A model and how it is trained; two lessons of one seed and batch see the same tokens in the same order."""

    model: ModelConfig
    train: TrainConfig
    validation_rows: int


TRAIN: dict[Size, TrainConfig] = {
    "toy": TrainConfig(steps=6, batch_rows=8, seq_len=32),
    "cpu": TrainConfig(steps=300, batch_rows=16, seq_len=128),
    "gpu": TrainConfig(steps=1000, batch_rows=64, seq_len=256),
}
MODEL: dict[Size, ModelConfig] = {
    "toy": ModelConfig(hidden_size=32, num_hidden_layers=2, intermediate_size=64),
    "cpu": ModelConfig(hidden_size=64, num_hidden_layers=3, intermediate_size=176),
    "gpu": ModelConfig(hidden_size=256, num_hidden_layers=6, intermediate_size=704),
}
RATE: dict[Size, float] = {"toy": 4e-3, "cpu": 4e-3, "gpu": 1e-3}  # peak learning rate
HEADS: dict[Size, int] = {"toy": 4, "cpu": 8, "gpu": 16}
WIDTH = 16  # of a head


def baseline(size: Size) -> Lesson:
    """A model of latent attention, sized as V2's, and dense layers that predicts one token: cards add their idea."""
    attention = AttentionConfig(
        num_attention_heads=HEADS[size],
        num_key_value_heads=HEADS[size],
        kv_lora_rank=4 * WIDTH,
        qk_nope_head_dim=WIDTH,
        qk_rope_head_dim=WIDTH // 2,
        v_head_dim=WIDTH,
    )
    moe = MoEConfig(n_routed_experts=0)
    steps = TRAIN[size].steps
    return Lesson(
        model=replace(MODEL[size], num_nextn_predict_layers=0, attention=attention, moe=moe),
        train=replace(
            TRAIN[size],
            micro_batch_rows=TRAIN[size].batch_rows,
            save_every=steps,
            validate_every=steps,
            optimizer=OptimizerConfig(lr=RATE[size]),
            schedule=ScheduleConfig(warmup_steps=steps // 10),
        ),
        validation_rows=TRAIN[size].batch_rows,
    )


def sized(model: ModelConfig, parameters: int) -> ModelConfig:
    """The dense model with the width of its feed-forward layers that brings it nearest to so many parameters."""
    a_width = 3 * model.hidden_size * model.num_hidden_layers
    narrowest = replace(model, intermediate_size=1)
    return replace(model, intermediate_size=1 + round((parameters - main_parameters(narrowest)) / a_width))


def teach(context: Context, lesson: Lesson, seed: int) -> Run:
    """The run of this lesson, done at most once: metrics of all steps, the last with `validation_loss`; the weights."""
    stream = context.checkpoint(STREAM, _write_stream)
    dtype = torch.bfloat16 if context.device.type == "cuda" else torch.float32

    def make(path: Path) -> None:
        tokenizer = Tokenizer.load(RUN / "tokenizer.json")
        shards = [open_shard(stream / f"{name}.bin", tokenizer) for name in ("training", "validation")]
        counts = lesson.train.batch_rows, lesson.validation_rows
        training, validation = (
            PackedLoader([shard], [1.0], seq_len=lesson.train.seq_len, batch_rows=rows, seed=seed)
            for shard, rows in zip(shards, counts, strict=True)
        )

        def notify(step: int, metrics: dict[str, object]) -> None:
            context.check_time()

        place = Place(Run(path), STAGE, World(0, 1, context.device), dtype, notify)
        model = Transformer(lesson.model)
        model.initialise(torch.Generator().manual_seed(seed))
        model.to(context.device)
        train_language(place, lesson.train, model, training.batch, [validation.batch(0)], seed=seed)

    made_from = {"lesson": lesson, "stream": STREAM, "seed": seed, "device": context.device.type, "dtype": str(dtype)}
    return Run(context.checkpoint(made_from, make))


def steps_of(run: Run) -> list[Record]:
    """The metrics of every step."""
    return run.read_metrics(STAGE)


def final_loss(run: Run) -> float:
    """Loss per token, in nats, on documents that no model trained on."""
    return float(steps_of(run)[-1]["validation_loss"])


def _write_stream(path: Path) -> None:
    tokenizer = Tokenizer.load(RUN / "tokenizer.json")
    documents = split_documents(read_documents(("sample",)), KEPT)
    write_shard(path / "training.bin", encode_documents(tokenizer, documents.train), tokenizer)
    write_shard(path / "validation.bin", encode_documents(tokenizer, documents.validation), tokenizer)
