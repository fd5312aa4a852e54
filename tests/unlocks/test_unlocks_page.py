"""The page in a browser without a network: no error, no overflow on a phone."""

from pathlib import Path
from typing import Any

import pytest

from fathom import cli


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unlocks")
    assert cli.main(["unlocks", "all", "--size", "toy", "--device", "cpu", "--out", str(out)]) == 0
    return out / "unlocks.html"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_offline_without_errors(written: Path, browser: Any, scheme: str) -> None:
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": 390, "height": 800})
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(written.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("section svg").count() >= 2
    assert errors == []
    context.close()
