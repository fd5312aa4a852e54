"""Layouts in a word."""

import pytest

from fathom.config import ModelConfig, ParallelConfig
from fathom.plan.notation import check_layout, parse_layout


@pytest.mark.parametrize(
    ("word", "layout", "processes"),
    [
        ("pp4ep2dp1", ParallelConfig(pipeline=4, expert=2, data=2), 8),
        ("PP2ep2dp2", ParallelConfig(pipeline=2, expert=2, data=4), 8),
        ("fs2ep2dp1", ParallelConfig(shard=2, expert=2, data=1), 2),
        ("fs2ep4dp1", ParallelConfig(shard=2, expert=4, data=2), 4),
        ("cp2", ParallelConfig(context=2), 4),
    ],
)
def test_a_word_says_its_layout(word: str, layout: ParallelConfig, processes: int) -> None:
    assert parse_layout(word) == layout
    found = check_layout(layout, ModelConfig(num_hidden_layers=4), processes, 4, 1, 16)
    assert found.data * found.model_ways == processes


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("", "is no layout; write pp"),
        ("pp", "is no layout"),
        ("pp2-ep2", "is no layout"),
        ("tp2", "names 'tp', which is none of pp"),
        ("pp2pp4", "gives pp twice"),
        ("dp0", "has no replica"),
        ("pp0", "parallel.pipeline=0"),
        ("ep0dp1", "parallel.expert=0"),
    ],
)
def test_a_word_that_says_none_is_refused(word: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_layout(word)


@pytest.mark.parametrize(
    ("word", "processes", "sentence"),
    [
        ("pp4dp1", 8, "there are 8; choose data=2"),
        ("ep8", 8, "expert=8 must divide the 4 routed experts and the 8 devices"),
        (
            "pp8",
            8,
            "pipeline=8 with 1f1b cuts the model into 8 pieces of whole layers, but it has 4; choose pipeline=4",
        ),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_the_nearest(word: str, processes: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_layout(parse_layout(word), ModelConfig(num_hidden_layers=4), processes, 8, 1, 16)
