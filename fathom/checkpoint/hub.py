"""Published checkpoints both ways: a directory of safetensors and config.json, as Hugging Face lays it out.

Fathom's own checkpoints have that form too, so whatever reads one reads the other; importing and exporting change
precision, shards and container. Nothing is loaded or written before every name and shape has been compared.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fathom.checkpoint.files import MANIFEST
from fathom.checkpoint.fit import require_fit
from fathom.checkpoint.gguf import GGUFFile
from fathom.checkpoint.names import mtp_prefix, published_copies, published_views, released_copies
from fathom.checkpoint.shards import ShardFiles
from fathom.checkpoint.tensors import Shape, TensorFiles, write_tensors
from fathom.checkpoint.tokenizer import copy_tokenizer
from fathom.config import ModelConfig
from fathom.config.published import Dtype, from_published, to_published
from fathom.model import Transformer
from fathom.parallel.mesh import ALONE, Axis
from fathom.parallel.world import World

log = logging.getLogger(__name__)


Source = TensorFiles | ShardFiles | GGUFFile


def import_checkpoint(source: Path, out: Path, dtype: Dtype = "float32") -> None:
    """Turn a published checkpoint, a directory or a .gguf file, into a Fathom checkpoint at `out`.

    Float32 holds every published precision exactly; "bfloat16" takes half the space. Raises ValueError where the
    tensors do not fit the config, and where `out` already holds something.
    """
    _convert(source, out, dtype, 5e9)


def export_checkpoint(
    source: Path, out: Path, dtype: Dtype = "float32", shard_bytes: float = 5e9, everyone: Axis = ALONE
) -> None:
    """Write the checkpoint at `source` to `out` as the released ones are, for transformers, vLLM and SGLang.

    "fp8" gives e4m3 codes with one scale per 128 x 128 block and everything else in bfloat16. Files hold at most
    `shard_bytes` bytes each, single larger tensors apart, and `everyone` shares them out; a process holds one tensor
    at a time. Raises ValueError as `import_checkpoint` does, on every process.
    """
    _convert(source, out, dtype, shard_bytes, everyone)


def export_in_world(world: World, source: Path, out: Path, dtype: Dtype) -> None:
    """`export_checkpoint` by all processes of a world."""
    export_checkpoint(source, out, dtype, everyone=world.everyone)


def load_published(source: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Transformer:
    """The model of a checkpoint directory or a .gguf file, its parameters in `dtype`.

    Raises ValueError, before anything is loaded, where a tensor is missing, unknown or of another shape than the
    config asks for.
    """
    tensors, config = _open(source)
    model = _materialise(_fitting_model(tensors, config), dtype, device)
    for name, view in published_views(model).items():
        view.copy_(tensors.read(name))
    return model


def save_published(model: Transformer, directory: Path, dtype: Dtype = "float32", shard_bytes: float = 5e9) -> None:
    """Write `model` under the published names, with its config.json; ValueError where its family has no form for it."""
    directory.mkdir(parents=True, exist_ok=True)
    _write(model, published_views(model).__getitem__, directory, dtype, shard_bytes)


def read_config(directory: Path) -> ModelConfig:
    """The architecture in a directory's config.json; ValueError, naming the file, where there is none to read."""
    path = directory / "config.json"
    try:
        return from_published(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; name a directory with a published or Fathom checkpoint") from error
    except ValueError as error:  # broken JSON too
        raise ValueError(f"{path}: {error}") from error


def _open(source: Path, everyone: Axis = ALONE) -> tuple[Source, ModelConfig]:
    if source.suffix == ".gguf":
        file = GGUFFile(source)
        return file, file.config
    config = read_config(source)
    return ShardFiles(source, config, everyone) if (source / MANIFEST).exists() else TensorFiles(source), config


def _fitting_model(tensors: Source, config: ModelConfig) -> Transformer:
    """A model without memory whose published form is what `tensors` holds; ValueError if there is none."""
    config = _without_absent_mtp(tensors, config)
    with torch.device("meta"):
        model = Transformer(config)
    copies = published_copies(config)
    require_fit(tensors.path, tensors.shapes, _shapes(model), copies)
    for copy, original in copies.items():
        if copy in tensors.shapes and not torch.equal(tensors.read(copy).float(), tensors.read(original).float()):
            raise ValueError(f"{tensors.path}: {copy} differs from {original}; Fathom shares them, so make them equal")
    return model


def _without_absent_mtp(tensors: Source, config: ModelConfig) -> ModelConfig:
    """Tools that know no MTP module drop its weights and leave the config as it was."""
    prefixes = tuple(mtp_prefix(config, depth) for depth in range(config.num_nextn_predict_layers))
    if not prefixes or any(name.startswith(prefixes) for name in tensors.shapes):
        return config
    log.warning(
        "%s has no MTP weights though its config counts %d modules: going on without", tensors.path, len(prefixes)
    )
    return replace(config, num_nextn_predict_layers=0)


def _materialise(model: Transformer, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """Give a meta model memory: parameters in `dtype`, not yet filled; buffers stay float32 and keep their values."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros(buffer.shape, device=device) if buffer.is_meta else buffer.to(device))
    return model


def _shapes(model: Transformer) -> dict[str, Shape]:
    return {name: tuple(view.shape) for name, view in published_views(model).items()}


def _write(
    model: Transformer,
    read: Callable[[str], Tensor],
    directory: Path,
    dtype: Dtype,
    shard_bytes: float,
    everyone: Axis = ALONE,
) -> None:
    """Tensors first and config.json last, from a model that may have no memory of its own."""
    published = to_published(model.config, dtype)
    copies = released_copies(model.config)
    shapes = _shapes(model)
    shapes |= {copy: shapes[original] for copy, original in copies.items()}
    write_tensors(directory, shapes, lambda name: read(copies.get(name, name)), dtype, shard_bytes, everyone)
    if everyone.rank == 0:
        (directory / "config.json").write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")


def _convert(source: Path, out: Path, dtype: Dtype, shard_bytes: float, everyone: Axis = ALONE) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is in use; name a directory that does not exist yet or is empty")
    tensors, config = _open(source, everyone)
    model = _fitting_model(tensors, config)
    partial = out.with_name(f"{out.name}.partial")
    if everyone.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    everyone.barrier()
    try:
        _write(model, tensors.read, partial, dtype, shard_bytes, everyone)
        everyone.barrier()
        if everyone.rank == 0:
            _give_tokenizer(tensors, source, partial)
            os.replace(partial, out)
        everyone.barrier()
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _give_tokenizer(tensors: Source, source: Path, out: Path) -> None:
    if isinstance(tensors, GGUFFile):
        tensors.write_tokenizer(out)
    else:
        copy_tokenizer(source, out)
