"""Checkpoints written in parts: moved between layouts bit for bit, refused by name when damaged, exported."""

import hashlib
import json
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fathom.checkpoint.files import MANIFEST, list_checkpoints
from fathom.checkpoint.hub import export_checkpoint, load_published, read_config, save_published
from fathom.checkpoint.manifest import Manifest
from fathom.checkpoint.sharded import Opened, Saver, is_sharded
from fathom.checkpoint.state import load_weights, weights_hash
from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.config.published import to_published
from fathom.model import Transformer
from fathom.parallel.world import World, launch

MODEL = ModelConfig(
    vocab_size=41,  # divides among no number of processes
    hidden_size=16,
    num_hidden_layers=2,
    num_nextn_predict_layers=1,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    ),
    moe=MoEConfig(moe_intermediate_size=8, n_shared_experts=1),
)


def build(seed: int = 0) -> Transformer:
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for number, (name, buffer) in enumerate(model.named_buffers()):
            if name.endswith("selection_bias"):
                buffer += 0.25 + number
    return model


def spread(model: Transformer, data: int, shard: int) -> dict[str, Tensor]:
    """The model's weights and moments of them, which `data` x `shard` processes share."""
    if data * shard > 1:
        mesh = init_device_mesh("cpu", (data, shard), mesh_dim_names=("data", "shard"))
        for block in model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {name.replace("model", "moment", 1): (w * 3).bfloat16() for name, w in weights.items()}
    return weights | moments | {"count": torch.tensor(7.0)}


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for name, t in tensors.items()}


def describe(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(to_published(MODEL)))


def save(world: World, directory: Path, data: int, shard: int) -> dict[str, Tensor]:
    tensors = spread(build(), data, shard)
    wanted = whole(tensors)
    saver = Saver(world.everyone)
    for step in (5, 10, 15):
        saver.save(directory, step, tensors, {"step": step}, 2, describe)
    with torch.no_grad():
        for tensor in tensors.values():  # what follows the save does not reach it
            tensor.zero_()
    saver.wait()
    return wanted


def load(world: World, path: Path, data: int, shard: int) -> dict[str, Tensor]:
    tensors = spread(build(seed=1), data, shard)
    Opened.at(path, world.everyone).load(tensors)
    return whole(tensors)


def export(world: World, path: Path, out: Path) -> None:
    export_checkpoint(path, out, shard_bytes=4000, everyone=world.everyone)


def stage_of(tensors: dict[str, Tensor], stage: int, stages: int) -> dict[str, Tensor]:
    """The tensors that a stage of a pipeline holds, of the first and the last the embedding too."""
    numbered = enumerate(tensors.items())
    held = {name: tensor for number, (name, tensor) in numbered if number * stages // len(tensors) == stage}
    shared = "model.embedding.weight"
    return held | ({shared: tensors[shared]} if stage in (0, stages - 1) else {})


def cut_again(world: World, directory: Path) -> dict[str, Tensor]:
    """Saved by a pipeline of four stages, loaded by two pipelines of two; of each process its part."""
    saver = Saver(world.everyone)
    saver.save(directory, 1, stage_of(spread(build(), 1, 1), world.rank, 4), {}, 1)
    saver.wait()
    tensors = stage_of(spread(build(seed=1), 1, 1), world.rank // 2, 2)
    Opened.at(directory / "step_000001", world.everyone).load(tensors)
    return tensors


def move(world: World, directory: Path) -> list[object]:
    """Saved by two replicas of two parts, loaded by one of four and by four of one; exported by all four."""
    wanted = save(world, directory, 2, 2)
    path = list_checkpoints(directory)[-1]
    export(world, path, directory / "exported")
    stages = cut_again(world, directory.with_name("cut"))
    return world.gather([stages, wanted, load(world, path, 1, 4), load(world, path, 4, 1)])


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, Tensor]]]]:
    directory = tmp_path_factory.mktemp("moved") / "pretrain"
    return directory, launch(4, "cpu", move, directory)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two parts, by one process: the parts are cut by hand."""
    directory = tmp_path_factory.mktemp("alone") / "pretrain"
    save(World(0, 1, torch.device("cpu")), directory, 1, 1)
    return directory


@pytest.mark.ranks
def test_a_checkpoint_moves_between_layouts_bit_for_bit(moved: tuple[Path, list[list[dict[str, Tensor]]]]) -> None:
    directory, ranks = moved
    definition = whole(spread(build(), 1, 1))
    found = [loaded for rank in ranks for loaded in rank[1:]]
    found.append(load(World(0, 1, torch.device("cpu")), list_checkpoints(directory)[-1], 1, 1))
    assert len(found) == 13
    for tensors in found:
        assert tensors.keys() == definition.keys()
        for name, tensor in definition.items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor), name


@pytest.mark.ranks
def test_a_checkpoint_moves_between_cuts_of_a_pipeline(moved: tuple[Path, list[list[dict[str, Tensor]]]]) -> None:
    definition = whole(spread(build(), 1, 1))
    for rank, (stages, *_) in enumerate(moved[1]):
        assert stages.keys() == stage_of(definition, rank // 2, 2).keys()
        for name, tensor in stages.items():
            assert torch.equal(tensor, definition[name]), name


@pytest.mark.ranks
def test_each_process_writes_its_part_and_the_newest_are_kept(moved: tuple[Path, list[object]]) -> None:
    directory, _ = moved
    assert [path.name for path in list_checkpoints(directory)] == ["step_000010", "step_000015"]
    assert not list(directory.glob("partial*"))
    path = list_checkpoints(directory)[-1]
    shards = sorted(path.glob("*.safetensors"))
    assert len(shards) == 4
    biggest = build().embedding.weight
    held = [sum(t.numel() for n, t in load_file(s).items() if n == "model.embedding.weight") for s in shards]
    assert sum(held) == biggest.numel()  # once, though two replicas hold it
    manifest = Manifest.read(path)
    assert manifest.values == {"step": 15}
    assert Opened.at(path).forms["moment.norm.weight"] == (torch.bfloat16, (16,))
    for file in (*shards, path / "config.json"):
        assert manifest.files[file.name].bytes == file.stat().st_size
        assert manifest.files[file.name].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.ranks
def test_the_export_from_shards_is_the_export_of_the_whole_model(
    moved: tuple[Path, list[object]], tmp_path: Path
) -> None:
    directory, _ = moved
    save_published(build(), tmp_path / "whole")
    written = sorted((directory / "exported").glob("model-*.safetensors"))
    assert len(written) > 4
    found = {name: tensor for file in written for name, tensor in load_file(file).items()}
    wanted = load_file(tmp_path / "whole" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    index = json.loads((directory / "exported" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == wanted.keys()
    assert weights_hash(load_published(directory / "exported")) == weights_hash(build())
    assert read_config(directory / "exported") == read_config(tmp_path / "whole")


def test_shards_read_as_a_model(alone: Path) -> None:
    path = list_checkpoints(alone)[-1]
    assert is_sharded(path)
    model = build(seed=1)
    load_weights(path, model)
    assert weights_hash(model) == weights_hash(build())


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"), [(truncate, "holds .* bytes of"), (flip, "SHA-256 differs"), (Path.unlink, "is missing")]
)
def test_a_damaged_shard_is_refused_by_its_name_before_anything_is_loaded(
    alone: Path, damage: Callable[[Path], None], words: str
) -> None:
    path = list_checkpoints(alone)[-1]
    file = next(path.glob("shard-*"))
    kept = file.read_bytes()
    damage(file)
    try:
        model = build(seed=1)
        with pytest.raises(ValueError, match=f"{file.name} (is not what was written .its )?{words}"):
            load_weights(path, model)
        with pytest.raises(ValueError, match=file.name):
            load(World(0, 1, torch.device("cpu")), path, 1, 1)
        assert weights_hash(model) == weights_hash(build(seed=1))
    finally:
        file.write_bytes(kept)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_manifest_is_refused(alone: Path, damage: Callable[[Path], None]) -> None:
    path = list_checkpoints(alone)[-1]
    kept = (path / MANIFEST).read_bytes()
    damage(path / MANIFEST)
    try:
        with pytest.raises(ValueError, match=f"{MANIFEST} is damaged"):
            Manifest.read(path)
    finally:
        (path / MANIFEST).write_bytes(kept)


def test_a_tensor_that_a_checkpoint_has_not_is_asked_for_in_vain(alone: Path) -> None:
    path = list_checkpoints(alone)[-1]
    with pytest.raises(ValueError, match=r"does not hold what this training needs.*unheard"):
        Opened.at(path).load({"unheard": torch.zeros(2)})
    with pytest.raises(ValueError, match="does not hold what this training needs"):
        Opened.at(path).load({"model.norm.weight": torch.zeros(3)})


def test_an_error_of_the_disk_surfaces_at_the_next_look(tmp_path: Path) -> None:
    saver = Saver()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        saver.save(tmp_path, 5, {"x": torch.zeros(4000)}, {"step": 5}, 2)
        assert saver._pending is not None
        saver._pending.exception()
        with pytest.raises(OSError, match="could not be written"):
            saver.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    saver.check()
    saver.save(tmp_path, 6, {"x": torch.zeros(4000)}, {"step": 6}, 2)
    saver.wait()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000006"]


@pytest.mark.slow
def test_an_export_holds_no_more_than_its_largest_tensor(tmp_path: Path) -> None:
    """48 MiB of weights whose largest tensor has 4 MiB leave within 16 MiB of the memory that a process began with."""
    script = textwrap.dedent("""
        import resource, sys, torch
        from pathlib import Path
        from fathom.checkpoint.tensors import write_tensors
        shapes = {f"layer.{i}": (1024, 1024) for i in range(12)}
        write_tensors(Path(sys.argv[1]) / "a", {"x": (4, 4)}, lambda name: torch.ones(4, 4))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_tensors(Path(sys.argv[1]), shapes, lambda name: torch.full(shapes[name], float(name[6:])))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    (tmp_path / "a").mkdir()
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 16 * 1024
    assert load_file(tmp_path / "model.safetensors")["layer.11"].eq(11).all()
