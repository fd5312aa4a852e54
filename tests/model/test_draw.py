"""Weights drawn part by part: those of the whole draw to the last bit, and never more memory than a process's part."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fathom.checkpoint.state import hash_of_weights, weights_hash
from fathom.config import ModelConfig, MoEConfig, ParallelConfig
from fathom.model import Transformer
from fathom.model import draw as drawing
from fathom.model.draw import draw, without_memory
from fathom.model.parallelize import local, parallelize, part, whole_weights
from fathom.model.pipeline import cut_stages, keep_stages
from fathom.parallel.mesh import build_mesh
from fathom.parallel.world import World, launch

MODEL = ModelConfig(
    vocab_size=97,  # does not divide, and ends in a rest
    hidden_size=48,
    num_hidden_layers=4,
    intermediate_size=72,
    num_nextn_predict_layers=1,
    moe=MoEConfig(n_routed_experts=8, moe_intermediate_size=24, first_k_dense_replace=1),
)
LAYOUTS = {
    "shard": (ParallelConfig(shard=2), 2),
    "expert": (ParallelConfig(expert=2), 2),
    "expert, shard": (ParallelConfig(expert=2, shard=2), 2),
    "pipeline": (ParallelConfig(pipeline=2), 2),
    "pipeline, expert": (ParallelConfig(pipeline=2, expert=2), 4),
    "expert 2 of shard 4": (ParallelConfig(expert=2, shard=4), 4),
}


Found = tuple[bool, int, int, str]


class Peak(TorchDispatchMode):
    """The largest tensor, in bytes, that any operation made."""

    largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if type(tensor) is torch.Tensor and not tensor.is_meta:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return made


def whole_model() -> Transformer:
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(5))
    return model


def draw_all(world: World, names: list[str]) -> list[list[Found]]:
    """Of every layout: whether this process's parts are those of the whole draw, bytes held and made, the hash."""
    return [cast(list[Found], world.gather(draw_parts(world, name))) for name in names]


def draw_parts(world: World, name: str) -> Found:
    layout, _ = LAYOUTS[name]
    spread = replace(world, mesh=build_mesh(layout, world.size, world.device), layout=layout)
    model = without_memory(MODEL)
    stages = spread.mesh.pipeline
    if stages.size > 1:
        keep_stages(model, [cut_stages(MODEL, stages.size)[stages.rank]])
    drawing.PIECE = 160  # the smallest matrices are drawn in several pieces too
    with Peak() as peak:
        parallelize(model, spread, generator=torch.Generator().manual_seed(5))
    wanted = whole_model()
    weights = wanted.state_dict()
    equal = all(torch.equal(local(own), part(weights[key], own)) for key, own in model.state_dict().items())
    held = sum(local(p).numel() * 4 for p in model.parameters())
    found = hash_of_weights(whole_weights(model, stages))
    return equal and torch.equal(model.frequencies, wanted.frequencies), held, peak.largest, found


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, 4])
def test_parts_are_drawn_as_the_whole_model_is(ranks: int) -> None:
    names = [name for name, (_, size) in LAYOUTS.items() if size == ranks]
    whole = whole_model()
    bytes_of = {name: p.numel() * 4 for name, p in whole.named_parameters()}
    for name, found in zip(names, launch(ranks, "cpu", draw_all, names), strict=True):
        layout, _ = LAYOUTS[name]
        for equal, held, _, hashed in found:
            assert equal, name
            assert hashed == weights_hash(whole), name
            assert held < 0.8 * sum(bytes_of.values()), name
        if layout.shard == 2 and layout.expert == 1:
            assert sum(held for _, held, _, _ in found) == sum(bytes_of.values())
            # one block is gathered at a time
            assert max(largest for _, _, largest, _ in found) < sum(bytes_of.values()) / 2
        if layout.expert > 1 and layout.shard == 1:  # all experts of a layer are never here
            assert max(largest for _, _, largest, _ in found) < max(bytes_of.values())


@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_model_drawn_in_pieces_is_the_whole_draw(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "PIECE", 160)
    config = replace(MODEL, tie_word_embeddings=tied)
    wanted, found = Transformer(config), Transformer(config)
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    wanted.initialise(generators[0])
    draw(found, generators[1])
    assert weights_hash(found) == weights_hash(wanted)
    assert torch.equal(*(generator.get_state() for generator in generators))
