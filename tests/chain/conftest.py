"""A run of one tiny model that has learned one reply by heart, so that what it says is known."""

import numpy as np
import pytest
import torch

from fathom.checkpoint.state import save_checkpoint, weights_hash
from fathom.config import AttentionConfig, Config, GRPOConfig, ModelConfig, MoEConfig, OptimizerConfig, SamplingConfig
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
