"""A person at the chat page, in Debian's Chromium."""

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")]
THINKING, ANSWER = "8+4=12,12-2=10", "8+4-2"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as machinery:
        chromium = machinery.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, shared: Any) -> Iterator[Any]:
    """The open page; at the end nothing may have gone wrong in its console."""
    context = browser.new_context(color_scheme="light", viewport={"width": 1100, "height": 800})
    opened, wrong = context.new_page(), list[str]()
    opened.set_default_timeout(20_000)
    opened.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("requestfailed", lambda request: "aborted" in request.failure.lower() or wrong.append(request.url))
    opened.goto(shared.url)
    opened.get_by_label("Temperature").evaluate("field => { field.value = 0 }")
    yield opened
    context.close()
    assert [each for each in wrong if "status of 400" not in each] == []  # Chromium reports refusals too


def ask(page: Any, text: str = "8,2,4:10") -> None:
    page.locator("#question").fill(text)
    page.keyboard.press("Enter")


async def slow_down(served: Any) -> None:
    """Make every step as long as that of a large model."""
    while True:
        await served.desk.loop.call(lambda _: time.sleep(0.02))


def wait_for_answer(page: Any) -> Any:
    page.locator("#send").wait_for()
    return page.locator(".turn.assistant").last


def test_a_question_is_thought_about_and_answered(page: Any, shared: Any) -> None:
    assert page.locator("#model").text_content() == "tiny/model"
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
    assert f"{usage.completion_tokens} tokens" in turn.locator(".tools").text_content()
    assert f"{usage.completion_tokens_details.reasoning_tokens} tokens" in fold.locator("summary").text_content()


def test_thinking_streams_and_stops(page: Any, shared: Any) -> None:
    page.locator("#settings summary").click()
    page.get_by_label("Temperature").fill("1.5")
    page.get_by_label("Most tokens", exact=True).fill("450")
    page.get_by_label("Seed").fill("3")
    brake = asyncio.run_coroutine_threadsafe(slow_down(shared), shared.running._coroutines)
    ask(page, "1")
    page.locator(".thinking.busy").wait_for()
    page.locator(".thinking summary").click()
    page.locator("#stop").click()
    wait_for_answer(page)
    assert page.locator(".thinking .text").is_visible()  # what was opened stays open
    assert "stopped" in page.locator("#status").text_content()
    brake.cancel()
    page.wait_for_timeout(200)
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
def test_it_is_accessible_and_fits(page: Any, theme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    if theme == "dark":
        page.locator("#theme").click()
    ask(page)
    wait_for_answer(page).locator(".thinking summary").click()
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
