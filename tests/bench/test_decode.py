"""Both sides of the generation bench emit the same tokens."""

from collections.abc import Callable
from typing import Any

import pytest

from fathom.bench import decode
from fathom.bench.decode import DecodeSize, first_difference
from fathom.bench.shape import published
from fathom.config import ModelConfig

SIZE = DecodeSize(rows=3, prompt=5, new_tokens=12)


def test_texts_and_counts_agree(tiny: ModelConfig, play: Callable[..., list[Any]]) -> None:
    pytest.importorskip("transformers")
    with published(tiny) as path:
        ours = play(decode.decode_fathom, 1, path, SIZE)
        theirs = play(decode.decode_transformers, 1, path, SIZE)
    assert ours[1]["tokens"] == theirs[1]["tokens"] == 36
    assert first_difference(ours[1]["texts"], theirs[1]["texts"]) is None
    assert theirs[0]["cache"] in ("dynamic", "static")


def test_first_difference() -> None:
    assert first_difference([[1, 2], [3, 4]], [[1, 2], [3, 4]]) is None
    assert first_difference([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 5], [6, 6]]) == {"row": 1, "place": 1, "rows": 2}
    assert first_difference([[1, 2, 3]], [[1, 2]]) == {"row": 0, "place": 2, "rows": 1}


@pytest.mark.ranks
def test_the_bench_alone(tiny: ModelConfig) -> None:
    found = decode.main("none", tiny, [SIZE], rounds=1)
    (size,) = found["sizes"]
    assert size["texts_equal"]
    assert set(size["tokens_per_s"]) == {"fathom, 2 x 1", "fathom, 1 x 1"}
