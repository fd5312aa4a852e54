"""A person who looks inside the model, steers its thinking, and compares two stages of it, in Debian's Chromium."""

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.runs import Run

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.browser
QUESTION, THINKING, ANSWER = "8,2,4:10", "8+4=12,12-2=10", "8+4-2"


@pytest.fixture(scope="module")
def staged_server(staged: Run, tools: Any) -> Iterator[Any]:
    from fathom.infer.speaker import load_speaker
    from fathom.serve.options import ServeOptions

    options = ServeOptions(device="cpu", rows=4, drafts=1)
    served = tools.Served(load_speaker(staged.path, torch.device("cpu")), staged.path, options)
    yield served
    served.close()


@pytest.fixture
def compared(visit: Callable[[str], Any], staged_server: Any) -> Any:
    """The page of a server with stages and drafts."""
    return visit(staged_server.url)


def ask(page: Any, text: str = QUESTION) -> Any:
    page.locator("#question").fill(text)
    page.keyboard.press("Enter")
    return page.locator(".turn.assistant").last


def settle(page: Any) -> None:
    page.locator("#log[aria-busy=false]").wait_for()


def exported(page: Any) -> dict[str, Any]:
    with page.expect_download() as waiting:
        page.locator("#export").click()
    return json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))


def no_serious_violation(page: Any) -> bool:
    found = axe.Axe().run(page).response["violations"]
    assert [each for each in found if each["impact"] in ("serious", "critical")] == []
    return True


def test_the_inside_view_shows_what_the_server_traced(compared: Any) -> None:
    page = compared
    page.locator("#inside").click()
    page.get_by_label("Temperature").evaluate("field => { field.value = 1 }")
    page.get_by_label("Seed").evaluate("field => { field.value = 4 }")
    page.get_by_label("Most tokens", exact=True).evaluate("field => { field.value = 40 }")
    turn = ask(page, "1")
    settle(page)
    message = list(exported(page)["messages"].values())[1]
    tokens = message["trace"]["tokens"]
    shown = turn.locator(".token")
    assert shown.count() == len(tokens) == sum(message["spent"][name] for name in ("thinkingTokens", "answerTokens"))
    chips = shown.evaluate_all("all => all.map(e => [e.textContent, Number(e.dataset.level), e.dataset.draft ?? null])")
    for (text, level, draft), token in zip(chips, tokens, strict=True):
        assert text == (token["text"].replace("\n", "\u23ce\n") or "\u00b7")
        assert level == pytest.approx(7 * math.sqrt(1 - token["probability"]), abs=0.51)
        assert draft == token["draft"]
    assert len({level for _, level, _ in chips}) > 2
    assert {draft for _, _, draft in chips} >= {"rejected", None}
    page.get_by_label("Entropy").check()
    levels = shown.evaluate_all("all => all.map(e => Number(e.dataset.level))")
    wanted = [7 * math.sqrt(min(1, token["entropy"] / 2.5)) for token in tokens]
    assert levels == pytest.approx(wanted, abs=0.51)
    assert "128 B" in turn.locator(".cache").text_content()  # 16 + 16 elements of four bytes in one layer
    assert "256 B" in turn.locator(".cache").text_content()  # keys and values of two heads of 16


def test_tokens_are_chosen_by_keys_and_pointer(page: Any) -> None:
    page.locator("#inside").click()
    turn = ask(page)
    settle(page)
    assert "".join(turn.locator(".token").all_text_contents()) == f"{THINKING}</think><answer>{ANSWER}</answer><|eos|>"
    tokens = list(exported(page)["messages"].values())[1]["trace"]["tokens"]
    flow = turn.locator(".tokens")
    flow.focus()
    page.keyboard.press("Home")
    for place in range(3):
        assert flow.get_attribute("aria-activedescendant").endswith(f"-{place}")
        assert turn.locator('.token[aria-selected="true"]').count() == 1
        assert f"Token {tokens[place]['text']}" in turn.locator(".facts").text_content()
        boxes = turn.locator(".experts rect").evaluate_all("all => all.map(e => e.classList.contains('chosen'))")
        assert [at for at, chosen in enumerate(boxes) if chosen] == sorted(tokens[place]["experts"][0])
        page.keyboard.press("ArrowRight")
    turn.locator(".token.special").first.click()
    assert "Token </think>" in turn.locator(".facts").text_content()
    page.reload()  # traces do not outlive the page, the wish to see them does
    assert page.locator("#inside").get_attribute("aria-pressed") == "true"
    assert page.locator(".turn.assistant .body code").text_content() == ANSWER
    assert page.locator(".inside").count() == 0
    page.get_by_label("Ask for another answer").click()
    page.locator(".inside .token").first.wait_for()


def test_nothing_is_traced_unless_the_view_is_open(page: Any) -> None:
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page)
    settle(page)
    assert "trace" not in asked.value.post_data_json
    assert "trace" not in list(exported(page)["messages"].values())[1]


def test_answer_now_closes_the_thinking(page: Any, shared: Any, brake: Any) -> None:
    page.locator("#settings summary").click()
    page.get_by_label("Temperature").fill("1.5")
    page.get_by_label("Most tokens", exact=True).fill("400")
    page.get_by_label("Seed").fill("3")
    brake(shared, steps=10)
    turn = ask(page, "1")
    page.locator(".thinking.busy").wait_for()
    page.get_by_label("Temperature").fill("0")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.get_by_label("Close the thinking and answer now").click()
    brake.release()
    settle(page)
    body = asked.value.post_data_json
    assert (body["continue_final_message"], body["thinking_token_budget"]) == (True, 0)
    thought = body["messages"][-1]["reasoning_content"]
    assert turn.locator(".thinking .text").text_content() == thought != ""
    assert turn.locator(".body").text_content().strip()
    found = shared.http.post("/tokenize", json={"prompt": thought, "add_special_tokens": False}).json()["count"]
    counted = re.search(r"(\d+) tokens", turn.locator(".thinking summary").text_content())
    assert counted is not None and abs(int(counted[1]) - found) <= 3  # what is spelled anew may be cut otherwise
    assert page.locator(".turn.assistant").count() == 1


def test_think_more_goes_on_behind_what_was_thought(page: Any) -> None:
    page.get_by_label("Most tokens", exact=True).evaluate("field => { field.value = 60 }")
    ask(page)
    settle(page)
    page.get_by_label("Go on thinking before the answer").click()
    page.locator(".turn.assistant .tools", has_text="2 / 2").wait_for()
    settle(page)
    messages = [each for each in exported(page)["messages"].values() if each["role"] == "assistant"]
    first, more = (each["thinking"] for each in messages)
    assert first == THINKING
    assert more.startswith(THINKING) and len(more) > len(THINKING)
    assert messages[1]["spent"]["thinkingTokens"] >= messages[0]["spent"]["thinkingTokens"] + 8


def test_two_stages_stream_side_by_side(compared: Any, staged_server: Any, brake: Any) -> None:
    page, name = compared, "tiny/model@sft"
    staged_server.openai.completions.create(model=name, prompt="1", max_tokens=1)  # loads it
    page.locator("#rival").select_option(name)
    page.get_by_label("Most tokens", exact=True).evaluate("field => { field.value = 60 }")
    page.locator("#inside").click()
    brake(staged_server, steps=3)
    ask(page)
    page.locator(".pair .turn.writing").nth(1).wait_for()
    desks, deadline = [staged_server.desk, staged_server.stages._desks[name]], time.monotonic() + 20
    while [desk.samples for desk in desks] != [1, 1]:  # both at once
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)
    brake.release()
    settle(page)
    left, right = page.locator(".pair .turn").all()
    assert (left.locator(".by").text_content(), right.locator(".by").text_content()) == ("tiny/model", name)
    assert left.locator(".body code").text_content() == ANSWER
    assert left.locator(".badge.right").count() == 1 and right.locator(".badge.right").count() == 0
    assert left.locator(".inside").count() == right.locator(".inside").count() == 1
    boxes = [turn.bounding_box() for turn in (left, right)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    alone = staged_server.openai.chat.completions.create(
        model=name, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=60
    )
    message = list(exported(page)["messages"].values())[1]
    assert message["beside"]["thinking"] == (getattr(alone.choices[0].message, "reasoning_content", None) or "")
    assert no_serious_violation(page)
    page.set_viewport_size({"width": 375, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    right.get_by_label("Go on with this answer").click()
    assert page.locator(".pair .turn").first.locator(".by").text_content() == name
    page.reload()
    assert page.locator(".pair .turn").first.locator(".by").text_content() == name


def test_problems_to_try_are_offered_and_graded(page: Any, shared: Any) -> None:
    page.locator(".welcome button").first.wait_for()
    offered = page.locator(".welcome button").all_text_contents()
    assert len(offered) == 4
    for question in offered:
        assert shared.http.post("/grade", json={"question": question, "answer": "0"}).json()["score"] == 0
    page.get_by_label("Most tokens", exact=True).evaluate("field => { field.value = 40 }")
    page.locator(".welcome button").first.click()
    settle(page)
    assert page.locator(".turn.user .body").text_content() == offered[0]


def test_a_question_of_no_task_has_no_badge(page: Any) -> None:
    turn = ask(page, "say")
    settle(page)
    assert turn.locator(".badge").count() == 0
