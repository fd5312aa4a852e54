"""The table of which kernels are the faster ones."""

import json
import logging
from pathlib import Path

import pytest
import torch

from fathom.kernels import choices


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "kernels.json"
    assert choices.read(file, "a gpu") == frozenset()
    choices.write(file, "a gpu", {("route", 8, 64): "torch", ("permute", 16, 32): "triton"})
    choices.write(file, "another", {("route", 8, 64): "triton"})
    assert choices.read(file, "a gpu") == {("route", 8, 64)}
    assert choices.read(file, "another") == frozenset()
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"a gpu": {"route": "torch"}})])
def test_what_is_no_table_is_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(text, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert choices.read(file, "a gpu") == frozenset()
    assert str(file) in caplog.text


def test_sizes_share_a_bucket_up_to_a_power_of_two() -> None:
    assert choices.bucket(torch.empty(3, 5, 7)) == (16, 7)
    assert choices.bucket(torch.empty(16, 7)) == (16, 7)
    assert choices.bucket(torch.empty(17, 7)) == (32, 7)


def test_the_directory_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert choices.path() == Path("/somewhere/fathom/kernels.json")
