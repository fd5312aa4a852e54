"""Drafts save steps and change no text: what the demo model says over HTTP, alone and in a busy batch."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom import demo
from fathom.infer.speaker import load_speaker
from fathom.serve.options import ServeOptions

QUESTIONS = ["8,2,4:10", "3,7,5:16", "9,9,2:20"]


def said(served: Any, question: str, seed: int) -> tuple[str, str]:
    reply = served.openai.chat.completions.create(
        model="tiny/model",
        messages=[{"role": "user", "content": question}],
        seed=seed,
        temperature=1.0,
        max_tokens=80,
        extra_body={"separate_reasoning": False},
    )
    return reply.choices[0].message.content, reply.choices[0].finish_reason


@pytest.fixture(scope="module")
def plain(tools: Any) -> Iterator[list[tuple[str, str]]]:
    """What is said without drafts, one request at a time."""
    served = serve_demo(tools, 0)
    yield [said(served, question, seed) for seed, question in enumerate(QUESTIONS)]
    served.close()


def serve_demo(tools: Any, drafts: Any) -> Any:
    speaker = load_speaker(Path(demo.RUN), torch.device("cpu"))
    return tools.Served(speaker, demo.RUN, ServeOptions(device="cpu", rows=6, context=160, drafts=drafts))


@pytest.mark.parametrize("drafts", [0, 1, 2, 3, "auto"])
def test_a_seed_gives_one_text_with_any_drafts(tools: Any, plain: list[tuple[str, str]], drafts: Any) -> None:
    served = serve_demo(tools, drafts)
    try:
        alone = [said(served, question, seed) for seed, question in enumerate(QUESTIONS)]
        with ThreadPoolExecutor(12) as pool:
            others = [pool.submit(said, served, QUESTIONS[seed % 3], seed) for seed in range(20, 26)]
            crowded = list(pool.map(said, [served] * len(QUESTIONS), QUESTIONS, range(len(QUESTIONS))))
            assert len({other.result() for other in others}) > 1
        if drafts != "auto":  # which may find that none pays
            assert len(served.desk._engine.verdicts[0]) == drafts
            assert all(served.desk._engine.verdicts[0])  # each place of a step was checked
    finally:
        served.close()
    assert alone == crowded == plain
    assert len({text for text, _ in plain}) == len(plain)
