"""A tiny model that has learned a few replies by heart, saved as a run and served on a port of this machine."""

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from openai import OpenAI

from fathom.checkpoint.state import save_checkpoint, weights_hash
from fathom.config import AttentionConfig, Config, GRPOConfig, ModelConfig, MoEConfig, OptimizerConfig, SamplingConfig
from fathom.infer.speaker import Speaker, load_speaker
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.runs import Run
from fathom.serve.app import build_app
from fathom.serve.desk import Desk
from fathom.serve.options import ServeOptions
from fathom.serve.server import Running, listen
from fathom.serve.stages import Stages
from fathom.text.chat import render_prompt, render_reply
from fathom.text.packing import Batch
from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer
from fathom.train.loss import Denominators, language_losses
from fathom.train.step import Rates, TrainState, train_step

QUESTION, REPLY = "8,2,4:10", "8+4=12,12-2=10</think><answer>8+4-2</answer>"
THINKING, ANSWER = "8+4=12,12-2=10", "<answer>8+4-2</answer>"
PAIRS = {QUESTION: REPLY, "say": "caf\u00e9 \U0001f600</think>na\u00efve \u4f60\u597d \U0001f600!"}
MODEL = ModelConfig(
    vocab_size=MINIMUM_VOCABULARY,
    hidden_size=32,
    num_hidden_layers=1,
    intermediate_size=32,
    num_nextn_predict_layers=1,
    max_position_embeddings=512,
    attention=AttentionConfig(num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=16),
    moe=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=0),
)


def untrained(**fields: object) -> Transformer:
    model = Transformer(replace(MODEL, **fields))
    model.initialise(torch.Generator().manual_seed(0))
    return model


def learn_by_heart(model: Transformer, pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> None:
    """Train on the replies to a few prompts until they are known."""
    rows = [prompt + reply for prompt, reply in pairs]
    width = max(map(len, rows))
    tokens = np.array([row + [pad] * (width - len(row)) for row in rows], dtype=np.int64)
    weights = np.zeros(tokens[:, 1:].shape, np.float32)
    for place, (prompt, reply) in enumerate(pairs):
        weights[place, len(prompt) - 1 : len(prompt) + len(reply) - 1] = 1
    places = np.broadcast_to(np.arange(weights.shape[1]), weights.shape)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], weights, places, np.zeros_like(places))
    world = World(0, 1, torch.device("cpu"))
    denominators = Denominators.of([batch], 0, world)
    state = TrainState.start(model, OptimizerConfig(lr=1e-2))
    for _ in range(90):
        train_step(
            state,
            [batch],
            lambda b: language_losses(model, b, denominators, 0.0, world.device, False),
            Rates(lr=1e-2, clip_norm=1.0, bias_speed=0.0),
            world,
        )


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run: one stage, its checkpoint and its ledger line."""
    torch.set_num_threads(1)
    run = Run(tmp_path_factory.mktemp("served"))
    tokenizer = Tokenizer.train([], MINIMUM_VOCABULARY)
    tokenizer.save(run.tokenizer_path)
    model = untrained()
    pairs = [(render_prompt(tokenizer, asked), render_reply(tokenizer, said)) for asked, said in PAIRS.items()]
    learn_by_heart(model, pairs, tokenizer.eos_id)
    run.write_config(Config(model=MODEL, device="cpu", grpo=GRPOConfig(sampling=SamplingConfig())))
    save_checkpoint(run.checkpoint_dir("grpo"), 1, model, {"step": torch.zeros(1)}, {"stage": "grpo"}, keep=1)
    run.append_ledger("grpo", key="", weights_hash=weights_hash(model))
    return run


@pytest.fixture(scope="session")
def staged(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run with two stages before the last, which know nothing."""
    path = tmp_path_factory.mktemp("staged") / "run"
    shutil.copytree(run.path, path)
    for number, stage in enumerate(("pretrain", "sft")):
        model = untrained()
        model.initialise(torch.Generator().manual_seed(number))
        save_checkpoint(path / stage, 1, model, {"step": torch.zeros(1)}, {"stage": stage}, keep=1)
    return Run(path)


@pytest.fixture(scope="session")
def speaker(run: Run) -> Speaker:
    return load_speaker(run.path, torch.device("cpu"))


class Served:
    """A running server, and clients for it."""

    def __init__(self, speaker: Speaker, source: Path, options: ServeOptions, keys: tuple[str, ...] = ()) -> None:
        self.desk = Desk(speaker, options, "tiny/model")
        self.stages = Stages(self.desk, source)
        self.app = build_app(self.stages, source, keys)
        self.running = Running(self.app, self.stages, listen("127.0.0.1", 0))
        self.running.start()
        self.url = self.running.url
        self.openai = OpenAI(base_url=f"{self.url}/v1", api_key=keys[0] if keys else "none", max_retries=0, timeout=60)
        self.http = httpx.Client(
            base_url=self.url, timeout=60, headers={"authorization": f"Bearer {keys[0]}"} if keys else {}
        )

    def close(self) -> None:
        self.openai.close()
        self.http.close()
        self.running.stop()


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """What a test needs that serves a model of its own."""
    return SimpleNamespace(untrained=untrained, learn_by_heart=learn_by_heart, Served=Served)


@pytest.fixture(scope="session")
def shared(speaker: Speaker, run: Run) -> Iterator[Served]:
    """The server that most tests ask; they leave it as it was."""
    served = Served(speaker, run.path, ServeOptions(device="cpu", rows=4, queue=64))
    yield served
    served.close()


@pytest.fixture
def serve(run: Run) -> Iterator[Callable[..., Served]]:
    """Starts servers of a test's own."""
    begun: list[Served] = []

    def start(keys: tuple[str, ...] = (), source: Path = run.path, **options: object) -> Served:
        own = load_speaker(source, torch.device("cpu"))
        begun.append(Served(own, source, replace(ServeOptions(device="cpu", rows=4), **options), keys))
        return begun[-1]

    yield start
    for served in begun:
        served.close()


# ---- a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[[str], Any]]:
    """Opens pages; at the end nothing may have gone wrong in their consoles."""
    contexts, wrong = list[Any](), list[str]()

    def open_page(url: str) -> Any:
        contexts.append(browser.new_context(color_scheme="light", viewport={"width": 1100, "height": 800}))
        opened = contexts[-1].new_page()
        opened.set_default_timeout(20_000)
        opened.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("requestfailed", lambda request: "aborted" in request.failure.lower() or wrong.append(request.url))
        opened.goto(url)
        opened.get_by_label("Temperature").evaluate("field => { field.value = 0 }")
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert [each for each in wrong if "status of 400" not in each] == []  # Chromium reports refusals too


@pytest.fixture
def page(visit: Callable[[str], Any], shared: Served) -> Any:
    """The page of the shared server."""
    return visit(shared.url)


class Brake:
    """Stops the engines of a server after so many steps, as if the model were large, until they are released."""

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._goes = threading.Event()

    def __call__(self, served: Served, steps: int) -> None:
        for desk in (served.desk, *served.stages._desks.values()):
            self._hold(desk._engine, steps)

    def _hold(self, engine: Any, steps: int) -> None:
        left, step = iter(range(steps)), engine.step

        def slowly() -> Any:
            if next(left, None) is None:
                self._goes.wait()
            return step()

        engine.step = slowly
        self._held.append(engine)

    def release(self) -> None:
        self._goes.set()
        while self._held:
            del self._held.pop().step


@pytest.fixture
def brake() -> Iterator[Brake]:
    held = Brake()
    yield held
    held.release()
