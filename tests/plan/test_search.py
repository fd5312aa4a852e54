"""Layouts found are possible, fit, and come best first."""

from dataclasses import replace

import pytest

from fathom.plan.hardware import parse_devices
from fathom.plan.layout import Layout, check
from fathom.plan.memory import capacity, memory
from fathom.plan.search import command, divisors, is_preset, is_trainable, search
from fathom.plan.throughput import throughput
from fathom.presets import PRESETS, preset

MOONLIGHT = preset("moonlight").model


def test_all_that_is_found_is_possible_and_fits() -> None:
    devices = parse_devices("8xH200")
    found = search(MOONLIGHT, devices, rows=64, seq_len=4096, shown=100)
    assert len(found) > 5
    assert len({f.layout for f in found}) == len(found)
    for f in found:
        check(f.layout, MOONLIGHT, devices, 64, 4096)
        assert f.memory == memory(MOONLIGHT, f.layout, 4096)
        assert f.memory.total <= capacity(devices.hardware.memory_bytes)
        assert f.throughput == throughput(MOONLIGHT, f.layout, devices, 4096)
    speeds = [f.throughput.tokens_per_s for f in found]
    assert speeds == sorted(speeds, reverse=True)
    assert found[0].hours(3.6e9 * speeds[0]) == pytest.approx(1e6)


def test_recomputation_is_kept_only_where_it_makes_room() -> None:
    found = search(preset("small").model, parse_devices("1xH200"), rows=8, seq_len=4096)
    assert [f.layout for f in found] == [Layout(micro_batch_rows=8)]
    longer = search(preset("small").model, parse_devices("1xH200"), rows=64, seq_len=4096)
    assert {f.layout.recompute for f in longer} > {"none"}
    sizes = {f.layout.recompute: f.layout.micro_batch_rows for f in longer}
    assert sizes["none"] < sizes["selective"]


def test_the_base_decides_precision_and_optimizer() -> None:
    base = Layout(precision="fp8", optimizer="adamw")
    found = search(MOONLIGHT, parse_devices("8xH200"), 64, 4096, base)
    assert {(f.layout.precision, f.layout.optimizer) for f in found} == {("fp8", "adamw")}


def test_v3_needs_more_than_one_node() -> None:
    with pytest.raises(ValueError, match=r"no layout of 8 .* the leanest, .* GiB a device, which has .*more devices"):
        search(preset("v3").model, parse_devices("8xH200"), 64, 4096)


def test_rows_must_reach_every_device() -> None:
    with pytest.raises(ValueError, match=r"cannot be shared out among .*choose a multiple of 7"):
        search(preset("laptop").model, parse_devices("7xH200"), 8, 128)


def test_the_command_is_for_replicas() -> None:
    config, layout = preset("small"), Layout(data=2, micro_batches=2, micro_batch_rows=8)
    assert is_trainable(layout)
    said = command(config, layout, rows=32, seq_len=4096)
    assert said.startswith("torchrun --standalone --nproc_per_node 2 -m fathom pretrain --preset small ")
    assert "--pretrain.batch_rows 32 --pretrain.micro_batch_rows 8 --pretrain.seq_len 4096" in said
    assert "--nnodes 4" in command(config, Layout(data=32, micro_batch_rows=1), 32, 4096)
    twelve = command(config, Layout(data=12), 12, 4096)
    assert "--nnodes 2 " in twelve and "--nproc_per_node 6 " in twelve
    for other in (Layout(shard=2), Layout(data=2, expert=2), Layout(recompute="full"), Layout(precision="fp8")):
        assert not is_trainable(other)
    with pytest.raises(ValueError, match="choose data=2 alone"):
        command(config, Layout(shard=2), 32, 4096)


def test_a_config_that_no_preset_has_is_not_called_by_ones_name() -> None:
    small = preset("small")
    assert all(is_preset(config) for config in PRESETS.values())
    assert is_preset(replace(small, dollars_per_hour=6.0, pretrain=replace(small.pretrain, batch_rows=32)))
    optimizer = replace(small.pretrain.optimizer, lr=1.0)
    for other in (
        replace(small, model=replace(small.model, num_hidden_layers=9)),
        replace(small, pretrain=replace(small.pretrain, optimizer=optimizer)),
        replace(small, preset="mine"),
    ):
        assert not is_preset(other)
        assert "--preset" not in command(other, Layout(), 1, 4096)


def test_divisors() -> None:
    assert divisors(12, 6) == [1, 2, 3, 4, 6]
