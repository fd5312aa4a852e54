"""Expert placement against the published example, and what every placement must keep."""

import numpy as np
import pytest

from fathom.plan.placement import pack_evenly, place_experts, replicate

LOADS = np.array(
    [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]],
    dtype=float,
)


def test_the_published_example() -> None:
    placement = place_experts(LOADS, replicas=16, groups=4, nodes=2, devices=8)
    assert placement.physical_to_logical.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    assert placement.replica_counts.tolist() == [
        [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1],
        [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1],
    ]
    assert placement.logical_to_physical[0, :6].tolist() == [[12, -1], [13, 15], [11, -1], [6, -1], [5, 7], [0, 2]]


def test_packing_by_hand() -> None:
    assert pack_evenly([4, 9, 5, 2], 2) == [[1, 3], [2, 0]]
    assert pack_evenly([1, 1, 1, 1], 2) == [[0, 2], [1, 3]]


def test_replicas_go_where_the_load_per_replica_is_largest() -> None:
    assert replicate([60, 10, 50], 6) == [0, 1, 2, 0, 2, 0]


@pytest.mark.parametrize(
    ("layers", "experts", "replicas", "groups", "nodes", "devices"),
    [(2, 12, 16, 4, 2, 8), (2, 12, 18, 4, 3, 9), (1, 8, 8, 2, 2, 4), (3, 16, 24, 1, 1, 4), (2, 256, 288, 8, 4, 32)],
)
def test_every_expert_has_a_slot_and_both_maps_agree(
    layers: int, experts: int, replicas: int, groups: int, nodes: int, devices: int
) -> None:
    loads = np.random.default_rng(0).gamma(2, size=(layers, experts))
    placement = place_experts(loads, replicas, groups, nodes, devices)
    assert placement.physical_to_logical.shape == (layers, replicas)
    assert placement.replica_counts.min() >= 1
    assert (placement.replica_counts.sum(axis=1) == replicas).all()
    for layer in range(layers):
        for expert in range(experts):
            slots = placement.logical_to_physical[layer, expert]
            slots = slots[slots >= 0]
            assert len(slots) == placement.replica_counts[layer, expert]
            assert (placement.physical_to_logical[layer, slots] == expert).all()
    np.testing.assert_allclose(placement.device_loads(loads, devices).sum(axis=1), loads.sum(axis=1))
    plain = loads.reshape(layers, -1, experts // min(experts, devices)).sum(axis=2)
    if replicas > experts:
        assert (placement.imbalance(loads, devices) < plain.max(axis=1) / plain.mean(axis=1) - 1).all()


def test_a_group_stays_on_its_node_where_nodes_divide_groups() -> None:
    placement = place_experts(LOADS, replicas=16, groups=4, nodes=2, devices=8)
    for layer in placement.physical_to_logical:
        nodes = [{int(expert) // 3 for expert in half} for half in (layer[:8], layer[8:])]
        assert not nodes[0] & nodes[1] and len(nodes[0]) == len(nodes[1]) == 2


def test_otherwise_experts_go_anywhere() -> None:
    anywhere = place_experts(LOADS, replicas=18, groups=4, nodes=3, devices=9)
    one_group = place_experts(LOADS, replicas=18, groups=1, nodes=1, devices=9)
    assert anywhere.physical_to_logical.tolist() == one_group.physical_to_logical.tolist()


@pytest.mark.parametrize(("nodes", "devices", "slots"), [(4, 32, 9), (18, 144, 2)])
def test_slots_of_the_online_service(nodes: int, devices: int, slots: int) -> None:
    loads = np.random.default_rng(1).gamma(2, size=(1, 256))
    placement = place_experts(loads, replicas=256 + 32, groups=8, nodes=nodes, devices=devices)
    assert placement.physical_to_logical.reshape(1, devices, -1).shape[2] == slots
    assert placement.imbalance(loads, devices)[0] < 0.15


def test_no_load_at_all_is_balanced() -> None:
    placement = place_experts(np.zeros((1, 4)), replicas=8, groups=1, nodes=1, devices=4)
    assert placement.replica_counts.min() >= 1
    assert placement.imbalance(np.zeros((1, 4)), 4).tolist() == [0.0]


@pytest.mark.parametrize(
    ("loads", "numbers", "message"),
    [
        (LOADS, (17, 4, 2, 8), "17 replicas cannot hold 12 experts in equal shares on 8 devices; choose 16"),
        (LOADS, (8, 4, 2, 8), "choose 16"),
        (LOADS, (16, 5, 2, 8), "12 experts do not divide into 5 groups; choose 4"),
        (LOADS, (16, 4, 3, 8), "8 devices do not divide into 3 nodes; choose 2 nodes"),
        (LOADS, (16, 4, 0, 8), "nodes=0"),
        (-LOADS, (16, 4, 2, 8), "from 0 up"),
        (LOADS[0], (16, 4, 2, 8), "table of layers by experts"),
    ],
)
def test_what_cannot_be_placed_is_refused(loads: np.ndarray, numbers: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place_experts(loads, *numbers)
