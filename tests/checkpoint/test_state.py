"""Checkpoints for resuming: whole or not at all, of the right config, and safe on a full disk."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.checkpoint.files import list_checkpoints
from fathom.checkpoint.state import (
    checkpoint_path,
    load_state,
    load_weights,
    save_checkpoint,
    weights_hash,
)
from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.model import Transformer

MODEL = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    ),
    moe=MoEConfig(moe_intermediate_size=8),
)


def build(seed: int = 0, config: ModelConfig = MODEL) -> Transformer:
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(seed))
    return model


def save(directory: Path, step: int, keep: int = 2, model: Transformer | None = None) -> Path:
    tensors = {"optimizer.0.exp_avg": torch.full((3,), float(step)), "half": torch.tensor([0.1], dtype=torch.bfloat16)}
    return save_checkpoint(directory, step, model or build(), tensors, {"stage": "pretrain"}, keep)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    model = build()
    with torch.no_grad():
        model.layers[0].feed_forward.router.selection_bias += 0.25
    path = save(tmp_path, 7, model=model)
    assert path == checkpoint_path(tmp_path, 7) == tmp_path / "step_000007"
    again = build(seed=1)
    load_weights(path, again)
    assert weights_hash(again) == weights_hash(model)
    tensors, state = load_state(path)
    assert state == {"step": 7, "stage": "pretrain"}
    assert tensors["optimizer.0.exp_avg"].tolist() == [7.0] * 3
    assert tensors["half"].dtype == torch.bfloat16


def test_the_newest_are_kept_and_listed_oldest_first(tmp_path: Path) -> None:
    for step in (5, 10, 9):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000009", "step_000010"]
    save(tmp_path, 12, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000012"]


def test_a_step_saved_again_replaces_what_was_there(tmp_path: Path) -> None:
    save(tmp_path, 3)
    path = save(tmp_path, 3, model=build(seed=1))
    model = build()
    load_weights(path, model)
    assert weights_hash(model) == weights_hash(build(seed=1))


def test_a_half_written_checkpoint_is_never_found(tmp_path: Path) -> None:
    whole = save(tmp_path, 5)
    for number, leftover in enumerate(("partial-000010", "step_000010"), 1):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:100])
        assert list_checkpoints(tmp_path) == [whole], number
    save(tmp_path, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000005", "step_000010"]
    load_weights(tmp_path / "step_000010", build())


def test_there_are_no_checkpoints_before_the_first(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (replace(MODEL, hidden_size=32), "hidden_size=16, but the config says 32"),
        (replace(MODEL, attention=replace(MODEL.attention, kv_lora_rank=4)), "kv_lora_rank=8, but the config says 4"),
        (replace(MODEL, moe=replace(MODEL.moe, routed_scaling_factor=2.5)), "routed_scaling_factor=1.0"),
        (replace(MODEL, num_nextn_predict_layers=0), "num_nextn_predict_layers=1, but the config says 0"),
        (replace(MODEL, rope=replace(MODEL.rope, theta=5e4)), "rope_theta=10000.0, but the config says 50000.0"),
    ],
)
def test_a_checkpoint_of_another_config_is_refused_with_the_field(
    tmp_path: Path, config: ModelConfig, field: str
) -> None:
    path = save(tmp_path, 1)
    model = build(seed=1, config=config)
    before = weights_hash(model)
    with pytest.raises(ValueError, match="step_000001") as refusal:
        load_weights(path, model)
    assert field in str(refusal.value)
    assert weights_hash(model) == before


def test_what_a_published_config_does_not_carry_is_no_difference(tmp_path: Path) -> None:
    """Fields of the other kind of attention stand in no config.json, so they cannot tell checkpoints apart."""
    attention = replace(MODEL.attention, head_dim=64, attention_bias=True)
    load_weights(save(tmp_path, 1), build(config=replace(MODEL, attention=attention)))
    dense = replace(
        MODEL,
        model_type="qwen3",
        num_nextn_predict_layers=0,
        attention=AttentionConfig(kind="gqa", num_attention_heads=2, num_key_value_heads=1, head_dim=8, qk_norm=True),
        moe=MoEConfig(n_routed_experts=0, bias_update_speed=0.5),
    )
    load_weights(save(tmp_path, 2, model=build(config=dense)), build(config=dense))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "noise", "gone"])
def test_a_damaged_file_is_named_in_a_sentence(tmp_path: Path, name: str, damage: str) -> None:
    path = save(tmp_path, 1)
    file = path / name
    content = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "noise":
            file.write_bytes(b"\x93\x07" * 50)
        case _:
            file.unlink()
    with pytest.raises(ValueError, match="step_000001"):
        load_weights(path, build())
        load_state(path)


def test_weights_hash_sees_every_weight_and_bias() -> None:
    hashes = {weights_hash(build()), weights_hash(build(seed=1))}
    for change in ("embedding.weight", "layers.0.feed_forward.router.selection_bias", "mtp.0.norm.weight"):
        model = build()
        model.state_dict()[change].view(-1)[0] += 1e-6
        hashes.add(weights_hash(model))
    assert len(hashes) == 5
    assert weights_hash(build()) in hashes


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Writing a file beyond `size` bytes fails, as the disk does when it is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds one checkpoint and half of another."""
    path = tmp_path / "disk"
    path.mkdir()
    size = sum(file.stat().st_size for file in save(tmp_path, 1).iterdir())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2 // 4096 * 4096}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def require_intact(directory: Path, step: int) -> None:
    assert [path.name for path in directory.iterdir()] == [f"step_{step:06d}"]
    model = build(seed=1)
    load_weights(list_checkpoints(directory)[-1], model)
    assert weights_hash(model) == weights_hash(build())
    assert load_state(list_checkpoints(directory)[-1])[1]["step"] == step


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(small_disk: Path) -> None:
    directory = small_disk / "pretrain"
    save(directory, 5)
    with pytest.raises(OSError) as fault:
        save(directory, 10)
    assert fault.value.errno == 28  # no space left on device
    require_intact(directory, 5)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_file_that_may_not_grow_leaves_the_last_checkpoint_as_it_was(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "pretrain"
    sizes = {file.name: file.stat().st_size for file in save(directory, 5).iterdir()}
    moments = {} if name.startswith("model") else {"moment": torch.zeros(sizes["model.safetensors"])}
    limit = sizes["model.safetensors"] - (not moments)
    with pytest.raises(OSError, match="could not be written") as fault, files_limited_to(limit):
        save_checkpoint(directory, 10, build(), moments, {}, keep=2)
    assert fault.value.errno == 27  # file too large
    assert str(fault.value.filename).endswith("partial-000010")
    require_intact(directory, 5)
