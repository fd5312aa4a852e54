"""A training state as a checkpoint keeps it: whole by one process, or in parts by all; and the way back."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.checkpoint.files import list_checkpoints
from fathom.checkpoint.sharded import Opened, Saver, is_sharded
from fathom.checkpoint.state import load_state, load_weights, require_config, save_checkpoint
from fathom.config.published import to_published
from fathom.model import Transformer
from fathom.model.parallelize import as_part, is_spread, let_go, local, spread_like, take
from fathom.parallel.world import World
from fathom.train.optimizer import load_optimizer_tensors, optimizer_tensors, owned_parameters, parted_tensors
from fathom.train.step import TrainState

log = logging.getLogger(__name__)

WEIGHTS, OPTIMIZER, RANDOM = "model", "optimizer", "random"
BY_WEIGHT = "by weight"  # how the tensors of a copy are named: as the weights that they repeat, or by number


def keeps_parts(state: TrainState, world: World) -> bool:
    """Whether checkpoints come in parts: where no process holds the whole state, or where that is asked for."""
    return world.layout.checkpoint == "sharded" or is_spread(state.model) or world.mesh.pipeline.size > 1


def keep_parts(
    saver: Saver, stage_dir: Path, state: TrainState, world: World, values: dict[str, Any], keep: int
) -> None:
    """Begin a checkpoint that all processes write; the step that follows does not wait for it."""
    config = to_published(state.model.config)
    kinds = {kind: BY_WEIGHT if _follows_weights(state, kind) else len(copy) for kind, copy in state.copies.items()}
    values = {"step": state.step, **values, "world": world.size, "mesh": _sizes(world), "copies": kinds}

    def describe(directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    saver.save(stage_dir, state.step, _parts(state, world), values, keep, describe)


def keep_whole(stage_dir: Path, state: TrainState, values: dict[str, Any], keep: int) -> None:
    """Write a checkpoint that this process holds whole."""
    tensors = {f"{OPTIMIZER}.{name}": tensor for name, tensor in optimizer_tensors(state.optimizer).items()}
    for kind, copy in state.copies.items():
        tensors |= {f"{kind}.{index}": tensor for index, tensor in enumerate(copy)}
    save_checkpoint(stage_dir, state.step, state.model, tensors, values, keep)


def restore(stage_dir: Path, state: TrainState, world: World) -> dict[str, Any]:
    """Go back to the newest good checkpoint of a stage; the values kept with it, none where there is no checkpoint.

    One in parts whose files are damaged is set aside, with a warning that names them. Raises ValueError where none is
    left, and where a checkpoint does not fit. Called by all processes.
    """
    damage = ""
    for path in reversed(list_checkpoints(stage_dir)):
        if not is_sharded(path):
            return _restore_whole(path, state, world)
        try:
            opened = Opened.at(path, world.everyone)
        except ValueError as error:
            damage = str(error)
            log.warning("%s", damage)
            world.barrier()  # all have read it
            if world.is_main:
                os.replace(path, path.with_name(f"damaged-{path.name}"))
            world.barrier()
            continue
        _restore_parts(opened, state, world)
        return opened.values
    if damage:
        raise ValueError(f"no checkpoint before it is left: {damage}")
    return {}


def _restore_whole(path: Path, state: TrainState, world: World) -> dict[str, Any]:
    if world.mesh.pipeline.size > 1:
        raise ValueError(
            f"{path} was written whole by one process, and a pipeline's processes hold some layers each; go on without "
            "one, or start from its weights with --init"
        )
    _load_whole_weights(state.model, path)
    tensors, values = load_state(path)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = tensor.to(world.device)
    moments = parts.pop(OPTIMIZER, {})  # none where every update so far was left out
    load_optimizer_tensors(state.optimizer, parted_tensors(moments, state.model))
    state.copies = {kind: [copy[str(i)] for i in range(len(copy))] for kind, copy in parts.items()}
    if is_spread(state.model):
        like = list(state.model.state_dict().values())
        state.copies = {kind: spread_like(copy, like) for kind, copy in state.copies.items()}
    state.step, state.fallbacks = values["step"], values.get("fallbacks", {})
    return values


def _load_whole_weights(model: Transformer, path: Path) -> None:
    """A checkpoint's weights, or this process's part of them where the model is spread."""
    if not is_spread(model):
        return load_weights(path, model)
    loaded = Transformer(model.config)
    load_weights(path, loaded)
    take(model, loaded.state_dict())


def _restore_parts(opened: Opened, state: TrainState, world: World) -> None:
    require_config(opened.path, state.model.config)
    let_go(state.model)
    weights = state.model.state_dict()
    wanted = {f"{WEIGHTS}.{name}": tensor for name, tensor in weights.items()}
    moments = _empty_moments(opened, state)
    for (name, entry), (_, tensor) in moments.items():
        wanted[f"{OPTIMIZER}.{name}.{entry}"] = tensor
    copies: dict[str, list[Tensor]] = {}
    for kind, count in opened.values["copies"].items():
        if count == BY_WEIGHT:
            named = {f"{kind}.{name}": torch.empty_like(tensor) for name, tensor in weights.items()}
        else:
            names = [f"{kind}.{index}" for index in range(count)]
            named = {name: _empty(opened, name, world.device) for name in names}
        wanted |= named
        copies[kind] = list(named.values())
    random = _random_states(world)
    same_world = opened.values["world"] == world.size and random.keys() <= opened.forms.keys()
    opened.load(wanted | (random if same_world else {}))
    if same_world:
        _set_random_states(random, world)
    for (_, entry), (own, tensor) in moments.items():
        state.optimizer.state[own][entry] = local(tensor)
        if own.grad is None:  # an unbroken run keeps the buffer, so decay and momentum go on without a gradient
            own.grad = torch.zeros_like(own)
    state.copies = copies
    state.step, state.fallbacks = opened.values["step"], opened.values.get("fallbacks", {})


def _sizes(world: World) -> dict[str, int]:
    """Processes along every axis of the mesh."""
    mesh = world.mesh
    axes = {"pipeline": mesh.pipeline, "data": mesh.data, "shard": mesh.shard, "context": mesh.context}
    return {name: axis.size for name, axis in axes.items()} | {"expert": mesh.expert.size}


def _parts(state: TrainState, world: World) -> dict[str, Tensor]:
    """This process's tensors under names that are the same in every layout."""
    weights = state.model.state_dict()
    parts = {f"{WEIGHTS}.{name}": tensor for name, tensor in weights.items()}
    for name, parameter, own in owned_parameters(state.model, state.optimizer):
        entries: dict[str, Tensor] = state.optimizer.state.get(own, {})
        for entry, tensor in entries.items():
            parts[f"{OPTIMIZER}.{name}.{entry}"] = as_part(tensor, parameter) if tensor.ndim else tensor
    for kind, copy in state.copies.items():
        names = weights if _follows_weights(state, kind) else map(str, range(len(copy)))
        parts |= {f"{kind}.{name}": tensor for name, tensor in zip(names, copy, strict=True)}
    return parts | _random_states(world)


def _follows_weights(state: TrainState, kind: str) -> bool:
    shapes = [weight.shape for weight in state.model.state_dict().values()]
    return [tensor.shape for tensor in state.copies[kind]] == shapes


def _empty_moments(opened: Opened, state: TrainState) -> dict[tuple[str, str], tuple[torch.nn.Parameter, Tensor]]:
    """(Name of a parameter, entry of its state) -> what the optimizer works on, and room for this process's part."""
    parameters = {name: (whole, own) for name, whole, own in owned_parameters(state.model, state.optimizer)}
    room: dict[tuple[str, str], tuple[torch.nn.Parameter, Tensor]] = {}
    for kept, (dtype, shape) in opened.forms.items():
        kind, _, rest = kept.partition(".")
        name, _, entry = rest.rpartition(".")
        if kind != OPTIMIZER or name not in parameters:
            continue
        whole, own = parameters[name]
        is_like = shape == tuple(whole.shape)
        tensor = as_part(torch.zeros_like(own, dtype=dtype), whole) if is_like else _empty(opened, kept, own.device)
        room[name, entry] = (own, tensor)
    return room


def _empty(opened: Opened, name: str, device: torch.device) -> Tensor:
    dtype, shape = opened.forms[name]
    return torch.empty(shape, dtype=dtype, device=device)


def _random_states(world: World) -> dict[str, Tensor]:
    states = {f"{RANDOM}.cpu.{world.rank}": torch.get_rng_state()}
    if world.device.type == "cuda":
        states[f"{RANDOM}.cuda.{world.rank}"] = torch.cuda.get_rng_state(world.device)
    return states


def _set_random_states(states: dict[str, Tensor], world: World) -> None:
    torch.set_rng_state(states[f"{RANDOM}.cpu.{world.rank}"])
    if world.device.type == "cuda":
        torch.cuda.set_rng_state(states[f"{RANDOM}.cuda.{world.rank}"], world.device)
