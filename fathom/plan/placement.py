"""Where experts live when the busy ones are kept more than once (EPLB; V3 3.4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Slots for experts, counted along the devices: device `i` has slots `i * P / devices` and on.

    Every layer has P slots for its E experts.
    """

    physical_to_logical: Int[np.ndarray, "L P"]  # the expert in each slot
    logical_to_physical: Int[np.ndarray, "L E R"]  # the slots of each expert, filled up with -1
    replica_counts: Int[np.ndarray, "L E"]

    def device_loads(self, loads: Float[np.ndarray, "L E"], devices: int) -> Float[np.ndarray, "L devices"]:
        """The load of every device, if each expert's load spreads evenly over its replicas."""
        per_replica = np.take_along_axis(loads / self.replica_counts, self.physical_to_logical, axis=1)
        return per_replica.reshape(len(loads), devices, -1).sum(axis=2)

    def imbalance(self, loads: Float[np.ndarray, "L E"], devices: int) -> Float[np.ndarray, " L"]:
        """By how much the busiest device of each layer exceeds the mean; 0 is perfect balance."""
        of_devices = self.device_loads(loads, devices)
        mean = of_devices.mean(axis=1)
        return np.divide(of_devices.max(axis=1), mean, out=np.ones(len(loads)), where=mean > 0) - 1

    def excess(self, loads: Float[np.ndarray, "L E"], devices: int) -> float:
        """By how much the busiest devices of all layers together exceed the mean: layers follow one another."""
        of_devices = self.device_loads(loads, devices)
        mean = float(of_devices.mean(axis=1).sum())
        return float(of_devices.max(axis=1).sum()) / mean - 1 if mean else 0.0


def equal_runs(layers: int, experts: int, devices: int) -> Placement:
    """Every expert once, in equal runs over the devices. Raises ValueError where the experts do not divide."""
    if experts % devices:
        raise ValueError(
            f"{experts} experts do not divide into equal runs over {devices} devices; choose "
            f"{_divisor(experts, devices)}"
        )
    each = np.tile(np.arange(experts), (layers, 1))
    return Placement(
        physical_to_logical=each, logical_to_physical=each[..., np.newaxis], replica_counts=np.ones_like(each)
    )


def place_experts(loads: Float[np.ndarray, "L E"], replicas: int, groups: int, nodes: int, devices: int) -> Placement:
    """Give the busiest experts more replicas and spread all `replicas` slots of a layer evenly over the devices.

    Hierarchical where `nodes` divides `groups`: the experts of a group stay on one node, so that routing limited to a
    few groups reaches few nodes. Otherwise global: any expert anywhere. Raises ValueError for numbers that leave
    devices with unequal slots or experts without one.
    """
    loads = np.asarray(loads, dtype=float)
    _check(loads, replicas, groups, nodes, devices)
    if groups % nodes:
        groups = nodes = 1
    slots = np.array([_place_layer(of_layer, replicas, groups, nodes, devices) for of_layer in loads])
    counts = np.array([np.bincount(of_layer, minlength=loads.shape[1]) for of_layer in slots])
    of_expert = np.full((*loads.shape, counts.max()), -1)
    for layer, expert in np.ndindex(*loads.shape):
        of_expert[layer, expert, : counts[layer, expert]] = np.flatnonzero(slots[layer] == expert)
    return Placement(physical_to_logical=slots, logical_to_physical=of_expert, replica_counts=counts)


def pack_evenly(loads: Sequence[float], packs: int) -> list[list[int]]:
    """Items into packs of equal number: the heaviest first, each into the lightest pack that has room."""
    room = len(loads) // packs
    members: list[list[int]] = [[] for _ in range(packs)]
    sums = [0.0] * packs
    for item in sorted(range(len(loads)), key=lambda item: -loads[item]):  # equal loads stay in order
        pack = min((pack for pack in range(packs) if len(members[pack]) < room), key=sums.__getitem__)
        members[pack].append(item)
        sums[pack] += loads[item]
    return members


def replicate(loads: Sequence[float], replicas: int) -> list[int]:
    """The expert of every replica: each once, then again whichever has the most load per replica."""
    experts = list(range(len(loads)))
    counts = [1] * len(loads)
    while len(experts) < replicas:
        busiest = max(range(len(loads)), key=lambda expert: loads[expert] / counts[expert])
        experts.append(busiest)
        counts[busiest] += 1
    return experts


def _place_layer(loads: Float[np.ndarray, " E"], replicas: int, groups: int, nodes: int, devices: int) -> list[int]:
    """The expert in each slot of one layer: groups to nodes, replicas within a node, replicas to its devices."""
    of_groups = loads.reshape(groups, -1)
    size = of_groups.shape[1]
    slots: list[int] = []
    for of_node in pack_evenly(of_groups.sum(axis=1).tolist(), nodes):
        experts = [group * size + member for group in of_node for member in range(size)]
        chosen = [experts[index] for index in replicate(loads[experts].tolist(), replicas // nodes)]
        shares = loads[chosen] / np.bincount(chosen, minlength=len(loads))[chosen]
        for of_device in pack_evenly(shares.tolist(), devices // nodes):
            slots += [chosen[index] for index in of_device]
    return slots


def _check(loads: Float[np.ndarray, "L E"], replicas: int, groups: int, nodes: int, devices: int) -> None:
    if loads.ndim != 2 or not loads.size or not np.isfinite(loads).all() or loads.min() < 0:
        raise ValueError("loads must be a table of layers by experts, each a number of tokens from 0 up")
    experts = loads.shape[1]
    for name, given in (("groups", groups), ("nodes", nodes), ("devices", devices)):
        if given < 1:
            raise ValueError(f"{name}={given} is not a number to place experts with; choose at least 1")
    if experts % groups:
        raise ValueError(f"{experts} experts do not divide into {groups} groups; choose {_divisor(experts, groups)}")
    if devices % nodes:
        raise ValueError(f"{devices} devices do not divide into {nodes} nodes; choose {_divisor(devices, nodes)} nodes")
    if replicas < experts or replicas % devices:
        raise ValueError(
            f"{replicas} replicas cannot hold {experts} experts in equal shares on {devices} devices; "
            f"choose {max(-(-experts // devices), round(replicas / devices)) * devices}"
        )


def _divisor(number: int, near: int) -> int:
    return min((part for part in range(1, number + 1) if number % part == 0), key=lambda part: abs(part - near))
