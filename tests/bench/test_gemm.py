"""The bench of FP8 products: what it asks for, and the tile that dispatch chooses from what it measured."""

import pytest
import torch

from fathom.bench import gemm


def test_it_asks_for_a_hopper_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(ValueError, match="measures kernels for Hopper; run it on an H100, H200 or H800"):
        gemm.main()


def test_it_has_no_other_peers() -> None:
    with pytest.raises(ValueError, match="--peer trl does not go with fathom bench gemm"):
        gemm.main("trl")


def test_the_tile_chosen_is_the_faster_one_measured() -> None:
    scaled = pytest.importorskip("fathom.kernels.triton.scaled")
    # rows, columns, groups and the faster height on an H200 of 132 processors
    for rows, columns, groups, height in (
        (4096, 2112, 1, 192),
        (4096, 24576, 1, 192),
        (4096, 4096, 1, 128),
        (4096, 7168, 1, 128),
        (32768, 4096, 8, 192),
        (32768, 4096, 32, 128),
        (32768, 2816, 64, 128),
        (32768, 2048, 64, 128),
    ):
        assert 64 * scaled.choose_tiling(rows, columns, groups, 132).readers == height
