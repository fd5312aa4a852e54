"""Redundant experts: what they gain, forecast from one window's loads for the next."""

import numpy as np
import pytest
import torch

from fathom.parallel.balance import Forecast, slots_for
from fathom.plan.placement import equal_runs, place_experts


def test_the_forecast_is_judged_by_the_window_after() -> None:
    first, second = torch.tensor([[40, 10, 10, 20]]), torch.tensor([[30, 30, 10, 10]])
    forecast = Forecast.of(2, 4)
    assert forecast.step(first // 2, ends=False) == {}
    assert forecast.step(first // 2, ends=True) == {}
    found = forecast.step(second, ends=True)["placement"]
    assert isinstance(found, dict)
    assert found["devices"] == 2 and found["slots"] == 6
    assert found["before"] == 0.5  # experts 0 and 1 on one device: 60 of 80, the mean being 40
    placement = place_experts(first.double().numpy(), 6, 1, 1, 2)
    devices = [0.0, 0.0]
    for slot, expert in enumerate(placement.physical_to_logical[0]):
        devices[slot // 3] += second[0, expert].item() / placement.replica_counts[0, expert]
    assert found["after"] == pytest.approx(max(devices) / 40 - 1)
    assert 0 <= found["hindsight"] <= found["before"]


def test_a_window_of_fewer_layers_starts_anew() -> None:
    forecast = Forecast.of(2, 4)
    for layers in (2, 1):
        assert forecast.step(torch.ones(layers, 4), ends=True) == {}
    found = forecast.step(torch.ones(1, 4), ends=True)
    assert found["placement"] == {"devices": 2, "slots": 6, "before": 0.0, "after": 0.0, "hindsight": 0.0}
    assert Forecast.of(0, 4).step(torch.ones(1, 4), ends=True) == {}


def test_layers_follow_one_another_in_the_excess() -> None:
    loads = np.array([[30.0, 10.0], [5.0, 15.0]])
    assert equal_runs(2, 2, 2).excess(loads, 2) == pytest.approx((30 + 15) / (20 + 10) - 1)
    assert equal_runs(2, 2, 2).imbalance(loads, 2) == pytest.approx([0.5, 0.5])


def test_slots_leave_every_device_one_more_than_it_needs() -> None:
    assert slots_for(256, 32) == 288  # V3 3.4.1: 32 redundant experts over 32 GPUs
    assert slots_for(10, 4) == 16


@pytest.mark.parametrize("experts", [0, 6])
def test_devices_that_do_not_divide_the_experts_are_refused(experts: int) -> None:
    with pytest.raises(ValueError, match=r"parallel\.balance_devices=4 does not divide .* experts; choose"):
        Forecast.of(4, experts)
