"""A run of one tiny model that has learned one reply by heart, and the config of a whole chain in small."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fathom.chain import laptop
from fathom.checkpoint.state import save_checkpoint, weights_hash
from fathom.config import (
    AttentionConfig,
    Config,
    EvalConfig,
    GRPOConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    SamplingConfig,
    ScheduleConfig,
    TaskConfig,
    TextConfig,
    TrainConfig,
)
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.runs import Run
from fathom.text.chat import render_prompt, render_reply
from fathom.text.packing import Batch
from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer
from fathom.train.loss import Denominators, language_losses
from fathom.train.step import Rates, TrainState, train_step

QUESTIONS = ("8,2,4:10", "3,9,5:11", "20,30,40:90")
REPLY = "8+4=12,12-2=10</think><answer>8+4-2</answer>"
MODEL = ModelConfig(
    vocab_size=MINIMUM_VOCABULARY,
    hidden_size=32,
    num_hidden_layers=1,
    intermediate_size=32,
    num_nextn_predict_layers=0,
    attention=AttentionConfig(num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=16),
    moe=MoEConfig(n_routed_experts=0),
)


def learn_by_heart(model: Transformer, tokenizer: Tokenizer) -> None:
    rows = [render_prompt(tokenizer, question) + render_reply(tokenizer, REPLY) for question in QUESTIONS]
    tokens = np.array(rows, dtype=np.int64)
    weights = np.zeros(tokens[:, 1:].shape, np.float32)
    weights[:, len(render_prompt(tokenizer, QUESTIONS[0])) - 1 :] = 1
    places = np.broadcast_to(np.arange(weights.shape[1]), weights.shape)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], weights, places, np.zeros_like(places))
    world = World(0, 1, torch.device("cpu"))
    denominators = Denominators.of([batch], 0, world)
    state = TrainState.start(model, OptimizerConfig(lr=1e-2))
    for _ in range(60):
        train_step(
            state,
            [batch],
            lambda b: language_losses(model, b, denominators, 0.0, world.device, False),
            Rates(lr=1e-2, clip_norm=1.0, bias_speed=0.0),
            world,
        )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run: one stage, its checkpoint and its ledger line."""
    torch.set_num_threads(1)
    run = Run(tmp_path_factory.mktemp("run"))
    tokenizer = Tokenizer.train([], MINIMUM_VOCABULARY)
    tokenizer.save(run.tokenizer_path)
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    learn_by_heart(model, tokenizer)
    config = Config(model=MODEL, device="cpu", grpo=GRPOConfig(sampling=SamplingConfig(max_tokens=24)))
    run.write_config(config)
    save_checkpoint(run.checkpoint_dir("grpo"), 1, model, {"step": torch.zeros(1)}, {"stage": "grpo"}, keep=1)
    run.append_ledger("grpo", key="", weights_hash=weights_hash(model))
    return run


MICRO_MODEL = ModelConfig(
    vocab_size=1300,
    hidden_size=16,
    num_hidden_layers=1,
    intermediate_size=32,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    ),
    moe=MoEConfig(moe_intermediate_size=8),
)
MICRO_TRAIN = TrainConfig(
    steps=4,
    batch_rows=8,
    micro_batch_rows=4,
    seq_len=48,
    save_every=2,
    validate_every=2,
    optimizer=OptimizerConfig(lr=2e-2),
    schedule=ScheduleConfig(warmup_steps=2),
)
MICRO = Config(
    workers=1,
    dollars_per_hour=36.0,
    model=MICRO_MODEL,
    text=TextConfig(vocab_size=1300, arithmetic_documents=120, expression_documents=40, validation_share=0.2),
    task=TaskConfig(numbers=2, max_number=20, max_target=40, max_failed_tries=0, demonstrations=300),
    pretrain=MICRO_TRAIN,
    # enough for well-formed answers among others, so that rewards differ
    sft=replace(MICRO_TRAIN, steps=40, save_every=20, validate_every=0),
    sft_control=replace(MICRO_TRAIN, steps=2, validate_every=0),
    grpo=GRPOConfig(steps=2, prompts=2, group=4, save_every=1, sampling=SamplingConfig(max_tokens=12)),
    eval=EvalConfig(problems=16, samples=1, rows=32),
)


@pytest.fixture(scope="session")
def micro(source: Path) -> Config:
    """A whole chain small enough for a test: 60 k parameters, a few steps a stage, sixteen problems."""
    return replace(MICRO, text=replace(MICRO.text, sources=(str(source),)))


@pytest.fixture(scope="session")
def finished(micro: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of that chain, run to its end; only to be read or copied."""
    path = tmp_path_factory.mktemp("finished") / "run"
    laptop.run(micro, path)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """A copy of the finished chain, to go on with."""
    return Run(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of a few hundred sentences in a dozen paragraphs."""
    file = tmp_path_factory.mktemp("text") / "cats.txt"
    sentence = "Cat number {0} sat on the mat and looked at the dogs.{1}"
    file.write_text("".join(sentence.format(n, " " if n % 25 else "\n\n\n") for n in range(1, 301)))
    return file
