"""A person at the chat page, in Debian's Chromium."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.browser
THINKING, ANSWER = "8+4=12,12-2=10", "8+4-2"


def ask(page: Any, text: str = "8,2,4:10") -> None:
    page.locator("#question").fill(text)
    page.keyboard.press("Enter")


def wait_for_answer(page: Any) -> Any:
    page.locator("#send").wait_for()
    return page.locator(".turn.assistant").last


def test_a_question_is_thought_about_and_answered(page: Any, shared: Any) -> None:
    page.wait_for_function("document.querySelector('#model').value === 'tiny/model'")
    assert not page.locator("#rival").is_visible()  # there is nothing to compare with
    ask(page)
    turn = wait_for_answer(page)
    assert turn.locator(".body code").text_content() == ANSWER
    fold = turn.locator(".thinking")
    assert fold.get_attribute("open") is None
    assert not fold.locator(".text").is_visible()
    fold.locator("summary").click()
    assert fold.locator(".text").text_content() == THINKING
    assert "tokens" in fold.locator("summary").text_content()
    usage = shared.openai.chat.completions.create(
        model="tiny/model", messages=[{"role": "user", "content": "8,2,4:10"}], temperature=0
    ).usage
    thought = usage.completion_tokens_details.reasoning_tokens
    assert f"Thought \u00b7 {thought} tokens \u00b7 " in fold.locator("summary").text_content()
    assert f"answer {usage.completion_tokens - thought} tokens \u00b7 " in turn.locator(".tools").text_content()
    assert turn.locator(".badge.right").text_content() == "\u2713 right"


def test_thinking_streams_and_stops(page: Any, shared: Any, brake: Any) -> None:
    page.locator("#settings summary").click()
    page.get_by_label("Temperature").fill("1.5")
    page.get_by_label("Most tokens", exact=True).fill("450")
    page.get_by_label("Seed").fill("3")
    brake(shared, steps=10)
    ask(page, "1")
    page.locator(".thinking.busy").wait_for()
    page.locator(".thinking summary").click()
    page.locator("#stop").click()
    wait_for_answer(page)
    brake.release()
    assert page.locator(".thinking .text").is_visible()  # what was opened stays open
    assert "stopped" in page.locator("#status").text_content()
    deadline = time.monotonic() + 10
    while shared.desk.samples and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    assert shared.desk.samples == 0


def test_retry_edit_and_branch(page: Any) -> None:
    ask(page)
    wait_for_answer(page)
    page.get_by_label("Ask for another answer").click()
    turn = wait_for_answer(page)
    assert "2 / 2" in turn.locator(".tools").text_content()
    page.get_by_label("Edit this question").click()
    page.locator("textarea.edit").fill("say")
    page.keyboard.press("Enter")
    wait_for_answer(page)
    page.locator(".turn.assistant .body", has_text="na\u00efve \u4f60\u597d").wait_for()
    page.locator(".turn.user").get_by_label("Previous version").click()
    assert page.locator(".turn.user .body").text_content() == "8,2,4:10"
    assert page.locator(".turn.assistant .body code").text_content() == ANSWER
    assert "2 / 2" in page.locator(".turn.assistant .tools").text_content()
    page.locator(".turn.assistant").get_by_label("Go on from here").click()
    assert page.locator("#chats li").count() == 2
    page.reload()
    assert page.locator("#chats li").count() == 2
    assert page.locator(".turn").count() == 2  # the branch is open and has the one answer
    assert "/ 2" not in page.locator(".turn.assistant .tools").text_content()


def test_what_a_model_writes_is_never_run(page: Any) -> None:
    hostile = (
        "<img src=x onerror=document.title='owned'> <script>document.title='owned'</script> "
        "[a](javascript:alert(1)) ![b](http://127.0.0.1:9/x.png) **bold** `code` \\(x^2\\) $$\\frac{1}{2}$$ "
        "$5 and $6 \\(\\href{javascript:alert(1)}{z}\\)\n\n```python\nfor i in x: pass\n```\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |"
    )
    page.evaluate(
        """async (text) => {
            const { render } = await import("/page/render.js");
            document.querySelector("#log").replaceChildren(render(text));
        }""",
        hostile,
    )
    log = page.locator("#log")
    assert page.title() == "Fathom"
    assert log.locator("img, script, [onerror], [style]").count() == 0
    assert "javascript:" not in str(log.evaluate("e => [...e.querySelectorAll('a')].map(a => a.href)"))
    assert log.locator("strong").text_content() == "bold"
    assert log.locator("math").count() >= 2
    assert log.locator("math[display=block] mfrac").count() == 1
    assert "$5 and $6" in log.text_content()
    assert log.locator("pre .hljs-keyword").count() >= 2
    assert log.locator("td").count() == 2


def test_the_keyboard_alone(page: Any) -> None:
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("8,2,4:10")
    page.keyboard.press("Shift+Enter")
    assert page.locator(".turn").count() == 0
    page.keyboard.press("Enter")
    wait_for_answer(page)
    page.locator("#question").focus()
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.className") == "edit"
    page.keyboard.press("Escape")
    assert page.locator("textarea.edit").count() == 0


def test_a_chat_is_exported_and_deleted(page: Any) -> None:
    ask(page)
    wait_for_answer(page)
    with page.expect_download() as waiting:
        page.locator("#export").click()
    found = json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert [message["role"] for message in found["messages"].values()] == ["user", "assistant"]
    assert list(found["messages"].values())[1]["thinking"] == THINKING
    page.locator("#delete").click()
    assert page.locator(".turn").count() == 0
    page.reload()
    assert page.locator(".turn").count() == 0


def test_a_refusal_is_shown(page: Any) -> None:
    page.locator("#settings summary").click()
    page.get_by_label("Most tokens", exact=True).fill("9999")
    with page.expect_response("**/v1/chat/completions") as refused:
        ask(page)
    assert refused.value.status == 400
    wait_for_answer(page)
    assert "the context holds 512" in page.locator(".wrong").text_content()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 375])
@pytest.mark.parametrize("within", [False, True])
def test_it_is_accessible_and_fits(page: Any, theme: str, width: int, within: bool) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    if theme == "dark":
        page.locator("#theme").click()
    if within:
        page.locator("#inside").click()
    ask(page)
    wait_for_answer(page).locator(".thinking summary").click()
    assert page.locator(".inside").count() == within
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(21, 23, 27)") == (theme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page)
    serious = [each for each in found.response["violations"] if each["impact"] in ("serious", "critical")]
    assert serious == []
    if width == 375:
        page.locator("#menu").click()
        page.locator("#new").click()
        assert page.locator(".turn").count() == 0
        assert not page.locator("#new").is_visible()
