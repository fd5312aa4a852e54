"""The page in a real browser: light, dark and as narrow as a phone."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")]
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SCHEMES = {"light": (), "dark": ("--blink-settings=preferredColorScheme=0",)}
# A frame as wide as a phone, since a headless window has a minimum width; the frame shares the outer page's origin.
PHONE = """<!doctype html><body><iframe width="390" height="800" srcdoc="{page}"></iframe><script>
window.onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const colour = () => page.defaultView.getComputedStyle(page.body).backgroundColor;
  const result = {{ width: page.documentElement.scrollWidth, colour: colour() }};
  const button = page.getElementById("theme");
  button.click(); result.first = button.textContent + " " + colour();
  button.click(); result.second = button.textContent + " " + colour();
  document.body.textContent = JSON.stringify(result);
}};
</script>"""


def chromium(tmp_path: Path, *arguments: str) -> str:
    assert CHROMIUM
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(params=["report", "plan_file"])
def page(request: pytest.FixtureRequest) -> Path:
    """The page of a run, and that of a plan."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_renders(page: Path, tmp_path: Path, scheme: str) -> None:
    picture = tmp_path / "page.png"
    chromium(tmp_path, *SCHEMES[scheme], "--window-size=1200,2400", f"--screenshot={picture}", page.as_uri())
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"), dtype=float)
    assert pixels.shape == (2400, 1200)
    assert (np.median(pixels) > 128) == (scheme == "light")
    inked = np.abs(pixels - np.median(pixels)) > 64
    assert 0.005 < inked.mean() < 0.3
    assert all(band.any() for band in np.array_split(inked, 6))


@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(252, 251, 248)"), ("dark", "rgb(21, 23, 27)")])
def test_nothing_overflows_on_a_phone(page: Path, tmp_path: Path, scheme: str, paper: str) -> None:
    frame = tmp_path / "phone.html"
    frame.write_text(PHONE.format(page=html.escape(page.read_text())))
    dom = chromium(tmp_path, *SCHEMES[scheme], "--dump-dom", frame.as_uri())
    result = re.search(r'\{"width":(\d+),"colour":"([^"]+)","first":"([^"]+)","second":"([^"]+)"\}', dom)
    assert result, dom[-2000:]
    width, colour, first, second = result.groups()
    assert int(width) <= 390
    assert colour == paper
    assert first == "Theme: light rgb(252, 251, 248)"
    assert second == "Theme: dark rgb(21, 23, 27)"
