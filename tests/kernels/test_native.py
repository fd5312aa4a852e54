"""C files are compiled once, and never in the way."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fathom.kernels import native
from fathom.kernels.step import has_step, panel_product, panels


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.compiled.cache_clear()
    yield tmp_path / "cache" / "fathom" / "native"
    native.compiled.cache_clear()


def compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_without_a_compiler_there_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fresh_cache: Path
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    with caplog.at_level(logging.INFO):
        assert not has_step() and not has_step()
    assert [record.levelname for record in caplog.records] == ["INFO"] and "install gcc or clang" in caplog.text
    assert not fresh_cache.exists()


def test_a_failing_compiler_is_announced_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fresh_cache: Path
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, "echo the disk is full >&2; exit 1"))
    assert not has_step()
    assert "the disk is full" in caplog.text and not list(fresh_cache.iterdir())


def test_a_folder_that_cannot_be_written_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("CC", compiler(tmp_path, "exit 1"))
    assert not has_step()
    assert "file" in caplog.text


@pytest.mark.skipif(native._compiler() is None, reason="needs a C compiler")
def test_it_is_compiled_once_for_each_source_also_without_openmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_cache: Path
) -> None:
    calls = tmp_path / "calls"
    script = f'echo "$@" >> {calls}; case "$*" in *-fopenmp*) exit 1;; esac; exec cc "$@"'
    monkeypatch.setenv("CC", compiler(tmp_path, script) + " -O1")
    assert has_step()
    native.compiled.cache_clear()
    assert has_step()
    assert len(list(fresh_cache.iterdir())) == 1
    assert len(calls.read_text(encoding="utf-8").splitlines()) == 2  # with threads, then without
    x, matrix = torch.randn(11, 70), torch.randn(70, 45)
    for threads in (1, 2):
        assert torch.allclose(panel_product(x, panels(matrix), 45, threads), x @ matrix, atol=1e-4)
