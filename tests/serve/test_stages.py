"""Other stages of the run that is served, each under an id of its own."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from fathom.runs import Run

MESSAGES = [{"role": "user", "content": "8,2,4:10"}]


@pytest.fixture
def served(serve: Callable[..., Any], staged: Run) -> Iterator[Any]:
    yield serve(source=staged.path, stages=1)


def ask(served: Any, model: str, **fields: Any) -> Any:
    given = {"temperature": 0, "max_tokens": 8, **fields}
    return served.openai.chat.completions.create(model=model, messages=MESSAGES, **given)


def test_stages_are_listed_and_answer_each_as_itself(served: Any, serve: Any, staged: Run) -> None:
    names = ["tiny/model", "tiny/model@pretrain", "tiny/model@sft"]
    assert [model.id for model in served.openai.models.list()] == names
    assert served.openai.models.retrieve("tiny/model@sft").id == "tiny/model@sft"
    alone = serve(source=staged.path / "sft" / "step_000001")  # the stage as a server of its own
    logprobs = {"logprobs": True, "top_logprobs": 2}
    found, wanted = ask(served, "tiny/model@sft", **logprobs), ask(alone, "tiny/model", **logprobs)
    assert found.model == "tiny/model@sft"
    assert found.choices[0].logprobs == wanted.choices[0].logprobs
    assert ask(served, "tiny/model").choices[0].logprobs != wanted.choices[0].logprobs
    assert served.http.post("/tokenize", json={"model": "tiny/model@sft", "prompt": "7"}).json()["count"] == 2


def test_no_more_are_held_than_allowed(served: Any) -> None:
    for stage in ("sft", "pretrain", "sft"):
        ask(served, f"tiny/model@{stage}")
        assert list(served.stages._desks) == [f"tiny/model@{stage}"]
    text = served.http.get("/metrics").text
    assert 'fathom:prompt_tokens_total{model_name="tiny/model@sft"}' in text  # what was counted stays
    assert 'fathom:num_requests_running{model_name="tiny/model@pretrain"}' not in text
    assert 'fathom:num_requests_running{model_name="tiny/model@sft"} 0.0' in text


def test_a_busy_stage_is_not_put_out(served: Any) -> None:
    ask(served, "tiny/model@sft")

    async def occupy() -> None:
        served.stages._desks["tiny/model@sft"].samples += 1

    asyncio.run_coroutine_threadsafe(occupy(), served.running._coroutines).result()
    with pytest.raises(openai.InternalServerError, match="loaded and busy") as refused:
        ask(served, "tiny/model@pretrain")
    assert refused.value.status_code == 503 and refused.value.response.headers["retry-after"] == "5"
    assert ask(served, "tiny/model@sft").choices


def test_several_who_ask_at_once_share_one_load(served: Any) -> None:
    with ThreadPoolExecutor(4) as people:
        texts = list(people.map(lambda _: ask(served, "tiny/model@sft").choices[0].message.content, range(4)))
    assert len(set(texts)) == 1
    assert len(served.stages._desks) == 1


def test_a_server_that_drains_waits_for_its_stages(served: Any) -> None:
    with served.openai.chat.completions.create(
        model="tiny/model@sft", messages=MESSAGES, stream=True, temperature=0, max_tokens=40
    ) as stream:
        next(iter(stream))
        with ThreadPoolExecutor(1) as other:
            ended = other.submit(served.running.stop, 20.0)
            finishes = [chunk.choices[0].finish_reason for chunk in stream if chunk.choices]
            ended.result(timeout=30)
    assert finishes[-1] in ("length", "stop")


@pytest.mark.parametrize("name", ["tiny/model@grpo", "tiny/model@", "tiny/model@../sft", "@sft"])
def test_other_names_are_not_found(served: Any, name: str) -> None:
    with pytest.raises(openai.NotFoundError, match="'tiny/model@pretrain'"):
        ask(served, name)


def test_a_checkpoint_and_a_server_without_stages_have_one_model(serve: Any, staged: Run) -> None:
    for served in (serve(source=staged.path, stages=0), serve(source=Path(staged.path / "sft" / "step_000001"))):
        assert [model.id for model in served.openai.models.list()] == ["tiny/model"]
