"""A tiny policy that has learned the form of an answer, so that its answers earn different rewards."""

import copy
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from fathom.config import AttentionConfig, GRPOConfig, ModelConfig, MoEConfig, SamplingConfig, TaskConfig
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.tasks import Task, build
from fathom.text.dialogues import worked_dialogues
from fathom.text.padding import DialogueLoader
from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer
from fathom.train.loss import Denominators, language_losses
from fathom.train.step import Rates, TrainState, train_step

STEPS = 60
CPU = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Policy:
    """A model with its tokenizer and task, and GRPO small enough for a test."""

    model: Transformer
    tokenizer: Tokenizer
    task: Task
    config: GRPOConfig


@pytest.fixture
def policy(trained_policy: Policy) -> Policy:
    """A policy of the test's own, to be trained on."""
    return Policy(copy.deepcopy(trained_policy.model), *list(vars(trained_policy).values())[1:])


@pytest.fixture(scope="session")
def trained_policy() -> Policy:
    """Fine-tuned on sums of two numbers: many of its answers are well formed, few are right."""
    tokenizer = Tokenizer.train(["1+2=3,4-1=3"], MINIMUM_VOCABULARY)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        attention=AttentionConfig(
            num_attention_heads=2,
            num_key_value_heads=2,
            kv_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=8,
        ),
        moe=MoEConfig(moe_intermediate_size=16),
    )
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    task = build(TaskConfig(numbers=2, max_number=20, max_target=40, max_failed_tries=0))
    fine_tune(model, task, tokenizer)
    grpo = GRPOConfig(steps=2, prompts=3, group=6, micro_batch_rows=64, sampling=SamplingConfig(max_tokens=14))
    return Policy(model, tokenizer, task, grpo)


def fine_tune(model: Transformer, task: Task, tokenizer: Tokenizer) -> None:
    loader = DialogueLoader(
        worked_dialogues(tokenizer, task, seed=0, count=STEPS * 8),
        pad_id=tokenizer.pad_id,
        seq_len=32,
        batch_rows=8,
        seed=0,
    )
    state = TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95)))
    for step in range(STEPS):
        batches = [loader.batch(step)]
        denominators = Denominators.of(batches, 1, CPU)
        losses = partial(language_losses, model, denominators=denominators, mtp_weight=0.3, device=CPU.device)
        rate = 2e-2 * min(1.0, (step + 1) / 5) * (1 - step / STEPS)
        train_step(state, batches, losses, Rates(lr=rate, clip_norm=1.0, bias_speed=1e-3), CPU)
