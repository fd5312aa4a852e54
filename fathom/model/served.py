"""A model's experts served by several processes, and moved to where the requests want them (EPLB; V3 3.4)."""

import numpy as np
import torch
from torch import nn

from fathom.model.moe import moe_layers
from fathom.model.transformer import Transformer
from fathom.parallel.balance import slots_for
from fathom.parallel.mesh import Axis
from fathom.parallel.replicas import Replicas
from fathom.plan.placement import place_experts


class ServedExperts:
    """The experts of a whole model, spread over the processes of `axis` in slots, redundant ones among them.

    Every process goes through the model with requests of its own, as many passes as the others; where one has none
    left it passes a token that nobody reads. Weights keep no gradient.
    """

    def __init__(self, model: Transformer, axis: Axis) -> None:
        """Keep this process's slots of every layer, as if all experts were equally busy."""
        self.axis, self.layers = axis, list(moe_layers(model))
        experts = model.config.moe.n_routed_experts
        self.slots = slots_for(experts, axis.size)
        start = place_experts(np.ones((1, experts)), self.slots, 1, 1, axis.size).physical_to_logical[0].tolist()
        for layer in self.layers:
            replicas = Replicas(start, experts, axis, layer.gate_up.device)
            for name in ("gate_up", "down"):
                own = getattr(layer, name).detach()[replicas.held].clone()
                setattr(layer, name, nn.Parameter(own, requires_grad=False))
            layer.replicas = replicas

    @torch.no_grad()
    def rebalance(self) -> dict[str, float]:
        """Between requests: move experts to where the loads since the last time want them.

        `measured` is by how much the busiest processes of all layers together exceeded the mean, and `predicted` what
        the same loads would make of it now.
        """
        replicas = [layer.replicas for layer in self.layers if layer.replicas is not None]
        loads = torch.stack([r.loads for r in replicas])
        computed = torch.zeros(len(replicas), self.axis.size, device=loads.device)
        computed[:, self.axis.rank] = torch.stack([r.computed for r in replicas]).float()
        self.axis.sum([loads, computed])
        table = loads.double().cpu().numpy()
        placement = place_experts(table, self.slots, 1, 1, self.axis.size)
        for layer, of_slot in zip(self.layers, placement.physical_to_logical.tolist(), strict=True):
            assert layer.replicas is not None
            for name in ("gate_up", "down"):
                getattr(layer, name).data = layer.replicas.moved(getattr(layer, name).data, of_slot)
            layer.replicas.place(of_slot)
            layer.replicas.loads.zero_()
            layer.replicas.computed.zero_()
        busiest, mean = computed.amax(1).sum(), computed.mean(1).sum().clamp(min=1e-9)
        return {"measured": float(busiest / mean) - 1, "predicted": placement.excess(table, self.axis.size)}
