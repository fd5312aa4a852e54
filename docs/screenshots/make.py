"""The pictures of this folder, taken anew of a running server in headless Chromium.

    fathom serve runs/laptop --drafts 1 &
    python docs/screenshots/make.py http://127.0.0.1:8000

Needs `pip install playwright pillow` and a chromium on the path. Seeds are fixed: the same run gives the same texts.
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
COLORS = 224  # of a picture's palette, which keeps it under 100 KB


def main(url: str) -> None:
    """Take all of them."""
    with sync_playwright() as machinery:
        chromium = machinery.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for theme in ("light", "dark"):
            page = open_page(chromium, url, theme, 1120, 740)
            page.locator("#inside").click()
            ask(page, "8,2,4:10", seed=13)
            page.locator(".thinking summary").click()
            keep(page, f"inside-{theme}")
        page = open_page(chromium, url, "light", 1120, 560)
        page.locator("#rival").select_option(index=2)  # the first stage of the run
        ask(page, "8,2,4:10", seed=1)
        for summary in page.locator(".thinking summary").all():
            summary.click()
        keep(page, "side-by-side")
        page = open_page(chromium, url, "dark", 375, 720)
        page.locator("#inside").click()
        ask(page, "8,2,4:10", seed=13)
        keep(page, "phone")
        chromium.close()


def open_page(chromium: Any, url: str, theme: str, width: int, height: int) -> Any:
    """An empty conversation."""
    context = chromium.new_context(
        color_scheme=theme, viewport={"width": width, "height": height}, device_scale_factor=1.5
    )
    page = context.new_page()
    page.goto(url)
    page.locator(".welcome button").first.wait_for()
    return page


def ask(page: Any, question: str, seed: int) -> None:
    """Ask, at temperature 1, and wait for the answer."""
    for label, value in (("Temperature", 1), ("Seed", seed), ("Most tokens", 200)):
        page.get_by_label(label, exact=True).evaluate("(field, value) => { field.value = value }", value)
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    page.locator(".turn.assistant .note").first.wait_for()
    page.locator("#log[aria-busy=false]").wait_for()


def keep(page: Any, name: str) -> None:
    """Write what the page shows, with few colours."""
    page.locator("#question").evaluate("field => field.blur()")
    page.mouse.move(0, 0)
    picture = Image.open(BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    picture.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        HERE / f"{name}.png", optimize=True
    )


if __name__ == "__main__":
    main(sys.argv[1])
