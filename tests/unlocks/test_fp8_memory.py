"""Bytes counted on tensors are those of the planner, and of the formats by hand."""

from math import ceil
from pathlib import Path

import pytest
import torch

from fathom.plan.count import attention_shapes, feed_forward_shapes
from fathom.unlocks import fp8_memory
from fathom.unlocks.experiment import Context


def test_state_is_what_the_planner_counts(tmp_path: Path) -> None:
    found = fp8_memory.measure(Context(torch.device("cpu"), "toy", tmp_path), 0)
    weights = found["parameters"]
    assert weights * 4 == found["bytes"]["BF16"]["weights"]
    for name, way in fp8_memory.variants("toy").items():
        counted, planned = found["bytes"][name], fp8_memory.planned(way, "toy")
        assert {part: counted[part] for part in planned} == planned
        assert counted["moments"] == weights * (8 if way.moments == "float32" else 4)


def test_fp8_keeps_codes_of_inputs_and_of_weights_in_two_layouts() -> None:
    _, plain, fp8 = (
        fp8_memory.bytes_of_step(way, "toy", torch.device("cpu")) for way in fp8_memory.variants("toy").values()
    )
    # inputs of q_a, q_b, kv_a, kv_b, gate, up and down: of two bytes each one is left, and a scale for the 32 tokens
    inputs = 6 * 128 + 256
    assert plain["activations"] - fp8["activations"] >= inputs * (2 - 1 - 4 / 32)
    config = fp8_memory.shape("toy")
    shapes = [*attention_shapes(config), *feed_forward_shapes(config, 0).elements()]
    codes = sum(2 * (o * i + 4 * ceil(o / 128) * ceil(i / 128)) for o, i in shapes)
    assert fp8["copies"] == codes and plain["copies"] == sum(2 * o * i for o, i in shapes)


@pytest.mark.parametrize(("kept", "verdict"), [(600.0, "supported"), (990.0, "not supported")])
def test_verdicts(kept: float, verdict: str) -> None:
    parts = dict.fromkeys(fp8_memory.PARTS, 1000.0)
    sizes = {
        "BF16": parts | {"moments": 2000.0},
        "BF16, BF16 moments": parts,
        "FP8, BF16 moments": parts | {"activations": kept},
    }
    assert fp8_memory.conclude([{"bytes": sizes, "parameters": 10}]).verdict == verdict
