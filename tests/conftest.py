"""Options of the test run, and the one browser of all pages."""

import argparse
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

# The rooms whose signatures say shapes; Python loops over characters and problems would only get slow.
# Triton compiles its kernels from their source, so those stay as they are.
ROOMS = [f"fathom.{room}" for room in ("model", "parallel", "checkpoint", "train", "infer", "rl")]
ROOMS += [f"fathom.kernels.{file.stem}" for file in Path(__file__).parents[1].glob("fathom/kernels/[a-z]*.py")]
# Whole numbers pass for floats, as the type system has it.
TYPECHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

if not torch.cuda.is_available():  # before anything imports Triton: the twins' logic can then be run without a GPU
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shapes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check the types and shapes in signatures at every call (tests of torch.compile need --no-shapes)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before any test file imports fathom, as the hook changes modules while they load."""
    if config.getoption("--shapes"):
        install_import_hook(ROOMS, TYPECHECKER)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium; one for all, as Playwright runs one loop in a thread."""
    playwright, chromium = pytest.importorskip("playwright.sync_api"), shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's chromium")
    with playwright.sync_playwright() as machinery:
        started = machinery.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()
