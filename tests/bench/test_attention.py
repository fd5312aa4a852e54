"""The bench of attention: its arithmetic, its manners without a GPU, and a small run where there is one."""

import json

import pytest
import torch

from fathom.bench.attention import SHAPES, Shape, main


def test_bytes_and_operations_are_those_of_deepseek() -> None:
    shape = Shape(name="", batch=2, context=1000, heads=128)
    assert shape.cache_bytes == 2 * 1000 * 1152
    assert shape.flops == 2 * 1000 * 128 * 2 * (576 + 512)
    assert Shape(name="", batch=1, context=1, heads=1, packed=True).cache_bytes == 656
    assert Shape(name="", batch=1, context=10, heads=1, time=3).flops == 3 * 10 * 2 * (576 + 512)


def test_it_has_no_peer() -> None:
    with pytest.raises(ValueError, match="has no peer"):
        main("transformers")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="measures a GPU, and torch finds none here"):
        main()


@pytest.mark.gpu
def test_a_small_run() -> None:
    shapes = [
        Shape(name="a", batch=2, context=100, heads=4, rank=128, rope=16, time=2, packed=p) for p in (False, True)
    ]
    found = main(shapes=[*shapes, SHAPES[0]], rounds=3)
    assert json.loads(json.dumps(found)) == found
    plain, packed, large = found["shapes"]
    assert plain["error"] < 4e-3 < packed["error"] < 5e-2
    assert large["gb_s"] > 100
    assert large["of_copy"] == pytest.approx(large["gb_s"] / found["copy_gb_s"], rel=0.01)
