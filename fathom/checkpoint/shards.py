"""The weights of a sharded checkpoint under their published names, put together one at a time from its files."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fathom.checkpoint.manifest import Manifest
from fathom.checkpoint.names import published_views
from fathom.checkpoint.tensors import Shape
from fathom.config import ModelConfig
from fathom.model import Transformer
from fathom.parallel.mesh import ALONE, Axis

WEIGHTS = "model."  # what the names of the weights start with in a sharded checkpoint, before Fathom's own names
LAYOUT = "DCP_SHARDING_INFO"  # header field of torch.distributed.checkpoint: where each part begins in its tensor


@dataclass(frozen=True)
class Part:
    """A box of one tensor in one file."""

    file: Any
    start: Shape
    shape: Shape


@dataclass(frozen=True)
class Box:
    """What a published name stands for: a box of one of our tensors."""

    tensor: str
    start: Shape
    size: Shape
    shape: Shape  # as published: without the leading dimensions of size one


class ShardFiles:
    """The published tensors of a sharded checkpoint, as `TensorFiles` gives those of a whole one.

    No more than one tensor is put together at a time. Raises ValueError for a damaged checkpoint before any is read.
    """

    def __init__(self, directory: Path, config: ModelConfig, everyone: Axis = ALONE) -> None:
        self.path = directory
        manifest = Manifest.read(directory)
        manifest.verify(directory, everyone)
        self._parts = _open_parts(directory, manifest)
        self._boxes = {name: box for name, box in _boxes(config).items() if box.tensor in self._parts}
        self.shapes = {name: box.shape for name, box in self._boxes.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, from the parts of it that lie in the files."""
        box = self._boxes[name]
        whole: Tensor | None = None
        found = 0
        for part in self._parts[box.tensor]:
            begin = [max(a, b) for a, b in zip(part.start, box.start, strict=True)]
            ends = zip(part.start, part.shape, box.start, box.size, strict=True)
            end = [min(a + n, b + m) for a, n, b, m in ends]
            if any(a >= b for a, b in zip(begin, end, strict=True)):
                continue
            read = part.file.get_slice(box.tensor)[_slices(begin, end, part.start)]
            whole = torch.empty(box.size, dtype=read.dtype) if whole is None else whole
            whole[_slices(begin, end, box.start)] = read
            found += read.numel()
        if whole is None or found != math.prod(box.size):
            raise ValueError(f"{self.path} holds {found} of {math.prod(box.size)} numbers of {name}; use another one")
        return whole.view(box.shape)


def _slices(begin: list[int], end: list[int], origin: Shape) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(begin, end, origin, strict=True))


def _open_parts(directory: Path, manifest: Manifest) -> dict[str, list[Part]]:
    """Our name of every weight -> where its parts lie."""
    parts: dict[str, list[Part]] = defaultdict(list)
    for file in manifest.files:
        if not file.endswith(".safetensors"):
            continue
        handle: Any = safe_open(directory / file, framework="pt")
        layout = json.loads(handle.metadata()[LAYOUT])
        for name in filter(lambda name: name.startswith(WEIGHTS), handle.keys()):
            shape = tuple(handle.get_slice(name).get_shape())
            parts[name].append(Part(handle, tuple(layout[name]["saved_offsets"]), shape))
    return dict(parts)


def _boxes(config: ModelConfig) -> dict[str, Box]:
    """Published name -> the box of our tensor that it stands for, found on a model without memory.

    Every published tensor is a run of consecutive numbers in one of ours, so its offset says where it begins.
    """
    with torch.device("meta"):
        model = Transformer(config)
    owners = {_memory(tensor): (name, tensor) for name, tensor in model.state_dict().items()}
    boxes: dict[str, Box] = {}
    for published, view in published_views(model).items():
        name, tensor = owners[_memory(view)]
        start: list[int] = []
        rest = view.storage_offset()
        for stride in tensor.stride():
            start.append(rest // stride)
            rest %= stride
        shape = tuple(view.shape)
        size = (1,) * (tensor.ndim - view.ndim) + shape
        boxes[published] = Box(WEIGHTS + name, tuple(start), size, shape)
    return boxes


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]  # on meta no tensor has an address
