"""What is refused before torch is imported, and the page's head."""

import subprocess
import sys

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from fathom.serve.app import enclose
from fathom.serve.options import ServeOptions

WITHOUT = """
import sys
from pathlib import Path
sys.modules[sys.argv[1]] = None  # as if it were not installed
from fathom.serve.options import ServeOptions
from fathom.serve.start import require_start
try:
    require_start(Path("nowhere"), ServeOptions(port=0))
except ValueError as error:
    print(error, "torch" in sys.modules, sep="|")
"""


@pytest.mark.parametrize("package", ["fastapi", "httpx"])
def test_a_missing_package_is_told_before_torch_is_imported(package: str) -> None:
    child = subprocess.run([sys.executable, "-c", WITHOUT, package], capture_output=True, text=True, check=True)
    assert child.stdout == f"serving needs the package {package}; pip install 'fathomlm[serve]'|False\n"


def test_the_page_answers_head_as_get_without_its_body() -> None:
    app = FastAPI()
    enclose(app, ServeOptions(), ())
    client = TestClient(app)
    head, whole = client.head("/"), client.get("/")
    assert (head.status_code, head.content) == (200, b"")
    assert whole.content and head.headers["content-length"] == str(len(whole.content))
    assert head.headers["content-security-policy"] == whole.headers["content-security-policy"]
