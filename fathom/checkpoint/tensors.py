"""Weights in safetensors files: read one at a time under their published names, written in shards."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fathom.checkpoint.files import INDEX, SINGLE
from fathom.checkpoint.names import SELECTION_BIAS, is_ignored, is_quantized
from fathom.config.published import Dtype
from fathom.kernels.quant import block_grid, dequantize_blocks, quantize_blocks
from fathom.parallel.mesh import ALONE, Axis

SCALE = "_scale_inv"  # what the name of an FP8 weight is followed by in that of its scales (which multiply, despite it)
FLOATS = ("F64", "F32", "F16", "BF16")

DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
}  # as safetensors spells them

Shape = tuple[int, ...]
Form = tuple[torch.dtype, Shape]


class TensorFiles:
    """The tensors of one directory, in one file or many. Only headers are read before `read` is called.

    Raises ValueError for a directory without weights, a broken or missing file, or a tensor that is no float.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self._files = _open_files(directory)
        self._dtypes: dict[str, str] = {}
        shapes: dict[str, Shape] = {}
        for name, file in self._files.items():
            header = file.get_slice(name)
            self._dtypes[name] = header.get_dtype()
            shapes[name] = tuple(header.get_shape())
        self.shapes = {name: shape for name, shape in shapes.items() if self._is_weight(name, shape)}
        for name, shape in self.shapes.items():
            self._require_readable(name, shape, shapes.get(name + SCALE))

    def read(self, name: str) -> Tensor:
        """One tensor; FP8 codes come multiplied by their scales, in float32."""
        tensor: Tensor = self._files[name].get_tensor(name)
        if self._dtypes[name] != "F8_E4M3":
            return tensor
        return dequantize_blocks(tensor, self._files[name + SCALE].get_tensor(name + SCALE))

    def _is_weight(self, name: str, shape: Shape) -> bool:
        """Scales belong to a weight, and layers without shared experts may be saved with empty ones."""
        is_scale = name.endswith(SCALE) and name.removesuffix(SCALE) in self._files
        return not is_scale and not is_ignored(name) and 0 not in shape

    def _require_readable(self, name: str, shape: Shape, scales: Shape | None) -> None:
        if self._dtypes[name] in FLOATS:
            return
        if self._dtypes[name] != "F8_E4M3" or scales is None:
            raise ValueError(
                f"{self.path}: {name} is stored as {self._dtypes[name]}; Fathom reads {', '.join(FLOATS)}, "
                f"and F8_E4M3 with {name}{SCALE} beside it"
            )
        if scales != (wanted := block_grid(shape)):
            raise ValueError(
                f"{self.path}: {name}{SCALE} has shape {scales}, but {name} of shape {shape} needs {wanted}"
            )


def write_tensors(
    directory: Path,
    shapes: Mapping[str, Shape],
    read: Callable[[str], Tensor],
    dtype: Dtype = "float32",
    shard_bytes: float = 5e9,
    everyone: Axis = ALONE,
) -> None:
    """Write the tensors named in `shapes`, asking `read` for one after the other: memory holds one at a time.

    One file while everything fits `shard_bytes`, else shards and their index. A file appears whole or not at all.
    The processes of `everyone` share the files out.
    """
    sizes = {name: stored_bytes(name, shape, dtype) for name, shape in shapes.items()}
    shards = _plan_shards(sizes, shard_bytes)
    files = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    holder: dict[str, str] = {}
    for number, (file, names) in enumerate(zip(files, shards, strict=True)):
        forms = {stored: form for name in names for stored, form in stored_forms(name, shapes[name], dtype).items()}
        if number % everyone.size == everyone.rank:
            write_file(directory / file, forms, (encode(name, read(name), dtype) for name in names))
        holder |= dict.fromkeys(forms, file)
    if len(shards) > 1 and everyone.rank == 0:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(holder.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(path: Path, forms: Mapping[str, Form], pieces: Iterable[Mapping[str, Tensor]]) -> None:
    """Write a safetensors file of the tensors in `forms`, each as `pieces` bring it.

    Wide numbers lie before narrow ones, so that each begins at a multiple of its own width.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in sorted(forms.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        starts[name] = end
        end += math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [starts[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for piece in pieces:
                for name, tensor in piece.items():
                    file.seek(8 + len(text) + starts[name])
                    file.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    except OSError as error:  # which does not know the file
        raise OSError(error.errno, f"{path.name} could not be written ({error.strerror})", str(path.parent)) from error
    os.replace(partial, path)


def encode(name: str, tensor: Tensor, dtype: Dtype) -> dict[str, Tensor]:
    """What a file of `dtype` holds for one tensor: itself, or FP8 codes and scales; selection biases stay float32."""
    stored = stored_dtype(name, dtype)
    if stored != torch.float8_e4m3fn:
        return {name: tensor.to(stored)}
    codes, scales = quantize_blocks(tensor)
    if not scales.isfinite().all():
        raise ValueError(f"{name} holds infinite values or NaN, which FP8 blocks cannot; export an earlier checkpoint")
    return {name: codes, name + SCALE: scales}


def stored_forms(name: str, shape: Shape, dtype: Dtype) -> dict[str, Form]:
    """What `encode` gives for a tensor of `shape`, told without it."""
    stored = stored_dtype(name, dtype)
    forms = {name: (stored, shape)}
    return forms | ({name + SCALE: (torch.float32, block_grid(shape))} if stored == torch.float8_e4m3fn else {})


def stored_dtype(name: str, dtype: Dtype) -> torch.dtype:
    """How a file of `dtype` holds one tensor."""
    if dtype == "float32" or name.endswith(SELECTION_BIAS):
        return torch.float32
    return torch.float8_e4m3fn if dtype == "fp8" and is_quantized(name) else torch.bfloat16


def stored_bytes(name: str, shape: Shape, dtype: Dtype) -> int:
    """Bytes that a tensor takes in a file of `dtype`, its scales included."""
    return sum(math.prod(shape) * stored.itemsize for stored, shape in stored_forms(name, shape, dtype).values())


def _open_files(directory: Path) -> dict[str, Any]:
    """Tensor name -> the open file that holds it."""
    if (directory / INDEX).exists():
        holder = _read_index(directory / INDEX)
        opened = {file: _open_file(directory / file) for file in sorted(set(holder.values()))}
        held = {file: set(handle.keys()) for file, handle in opened.items()}
        absent = [f"{name} in {file}" for name, file in holder.items() if name not in held[file]]
        if absent:
            raise ValueError(f"{directory / INDEX} promises {absent[0]}, which is not there; fetch that file again")
        return {name: opened[file] for name, file in holder.items()}
    if (directory / SINGLE).exists():
        file = _open_file(directory / SINGLE)
        return dict.fromkeys(file.keys(), file)
    pickled = " Pickled weights (.bin, .pt) are never opened: convert them." if any(directory.glob("*.bin")) else ""
    raise ValueError(f"{directory} holds neither {SINGLE} nor {INDEX}; name a directory with a checkpoint.{pickled}")


def _read_index(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no index of a sharded checkpoint; fetch or write it again") from error


def _open_file(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing, though {INDEX} names it; fetch it again") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); fetch or write it again") from error


def _plan_shards(sizes: Mapping[str, int], shard_bytes: float) -> list[list[str]]:
    """Names in order, cut where the next one would exceed `shard_bytes`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _shard_name(index: int, shards: int) -> str:
    return f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
