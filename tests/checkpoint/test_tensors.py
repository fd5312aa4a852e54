"""Safetensors files: how tensors are spread over them, and which files are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fathom.checkpoint.tensors import TensorFiles, write_tensors

QUANTIZED = "model.layers.0.mlp.down_proj.weight"


def write(directory: Path, tensors: dict[str, torch.Tensor], **options: object) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_tensors(directory, shapes, tensors.__getitem__, **options)


def test_shards_hold_at_most_the_bytes_asked_for(tmp_path: Path) -> None:
    tensors = {name: torch.full((10,), float(i)) for i, name in enumerate("abcde")}  # 40 bytes each
    write(tmp_path, tensors, shard_bytes=100)
    files = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200
    assert index["weight_map"] == dict(zip("abcde", [files[0]] * 2 + [files[1]] * 2 + [files[2]], strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == [*files, "model.safetensors.index.json"]
    assert sorted(load_file(tmp_path / files[1])) == ["c", "d"]
    read = TensorFiles(tmp_path)
    assert {name: read.read(name)[0].item() for name in read.shapes} == dict(zip("abcde", range(5), strict=True))


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_tensor_larger_than_a_shard_has_one_to_itself(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.ones(2), "b": torch.ones(100), "c": torch.ones(2)}, shard_bytes=16)
    assert sorted(TensorFiles(tmp_path).shapes.values()) == [(2,), (2,), (100,)]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_fp8_files_hold_codes_scales_and_bfloat16(tmp_path: Path) -> None:
    weight = torch.zeros(130, 3)
    weight[0], weight[129] = 448.0, -7.0
    bias = "model.layers.0.mlp.gate.e_score_correction_bias"
    write(tmp_path, {QUANTIZED: weight, "model.norm.weight": torch.ones(3), bias: torch.ones(4)}, dtype="fp8")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored[QUANTIZED].dtype == torch.float8_e4m3fn
    torch.testing.assert_close(stored[f"{QUANTIZED}_scale_inv"], torch.tensor([[1.0], [7 / 448]]), rtol=0, atol=0)
    assert stored["model.norm.weight"].dtype == torch.bfloat16
    assert stored[bias].dtype == torch.float32
    read = TensorFiles(tmp_path)
    assert set(read.shapes) == {QUANTIZED, "model.norm.weight", bias}
    assert torch.equal(read.read(QUANTIZED), weight)


def test_fp8_refuses_what_has_no_scale(tmp_path: Path) -> None:
    weight = torch.ones(2, 2)
    weight[0, 1] = float("nan")
    with pytest.raises(ValueError, match=f"{QUANTIZED} holds infinite values or NaN"):
        write(tmp_path, {QUANTIZED: weight}, dtype="fp8")


def test_old_rope_tables_and_empty_tensors_are_passed_over(tmp_path: Path) -> None:
    rope, empty = "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.mlp.shared_experts.up_proj.weight"
    save_file({"a": torch.ones(2), rope: torch.ones(4), empty: torch.ones(0, 3)}, tmp_path / "model.safetensors")
    assert TensorFiles(tmp_path).shapes == {"a": (2,)}


def test_a_missing_or_cut_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.ones(4), "b": torch.ones(4)}, shard_bytes=16)
    second = tmp_path / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"model-00002-of-00002.safetensors is no whole safetensors file"):
        TensorFiles(tmp_path)
    save_file({"other": torch.ones(4)}, second)
    with pytest.raises(ValueError, match=r"promises b in model-00002-of-00002.safetensors, which is not there"):
        TensorFiles(tmp_path)
    second.unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002.safetensors is missing"):
        TensorFiles(tmp_path)


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index.json is no index of a sharded checkpoint"):
        TensorFiles(tmp_path)


def test_a_directory_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds neither model.safetensors nor"):
        TensorFiles(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="Pickled weights"):
        TensorFiles(tmp_path)


def test_tensors_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2, 2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"a.weight is stored as I8; Fathom reads"):
        TensorFiles(tmp_path)
    codes = torch.ones(2, 2).to(torch.float8_e4m3fn)
    save_file({"a.weight": codes}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"F8_E4M3 with a.weight_scale_inv beside it"):
        TensorFiles(tmp_path)
    save_file({"a.weight": codes, "a.weight_scale_inv": torch.ones(2, 1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"scale_inv has shape \(2, 1\), but a.weight of shape \(2, 2\) needs \(1, 1\)"
    ):
        TensorFiles(tmp_path)
