"""Checkpoints written, read, converted and refused."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fathom.checkpoint.hub import export_checkpoint, import_checkpoint, load_published, read_config, save_published
from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.kernels.quant import dequantize_blocks, quantize_blocks
from fathom.model import Transformer

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=2,
    intermediate_size=24,
    attention=AttentionConfig(q_lora_rank=8),
    moe=MoEConfig(n_routed_experts=4, moe_intermediate_size=12, first_k_dense_replace=1),
)
NORM = "model.layers.1.input_layernorm.weight"
COPY = "model.layers.2.embed_tokens.weight"


def random_model(config: ModelConfig = CONFIG) -> Transformer:
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for _, tensor in sorted(model.state_dict().items()):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


def assert_same_weights(found: Transformer, wanted: Transformer, dtype: torch.dtype = torch.float32) -> None:
    assert found.config == wanted.config
    for name, tensor in wanted.state_dict().items():
        kept = tensor if name.endswith("selection_bias") else tensor.to(dtype).float()
        assert torch.equal(found.state_dict()[name], kept), name


def rewrite(directory: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(directory / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors")


@pytest.mark.parametrize("shard_bytes", [5e9, 4000])
def test_a_model_comes_back_as_it_was(shard_bytes: float, tmp_path: Path) -> None:
    model = random_model()
    save_published(model, tmp_path, shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors").exists() == (shard_bytes > 4000)
    assert_same_weights(load_published(tmp_path), model)
    assert read_config(tmp_path) == CONFIG


def test_bfloat16_rounds_every_weight_but_the_selection_bias(tmp_path: Path) -> None:
    model = random_model()
    save_published(model, tmp_path, "bfloat16")
    assert_same_weights(load_published(tmp_path), model, torch.bfloat16)


def test_fp8_is_read_as_exactly_what_its_blocks_stand_for(tmp_path: Path) -> None:
    model = random_model(replace(CONFIG, hidden_size=144))
    save_published(model, tmp_path, "fp8")
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["weight_block_size"] == [128, 128]
    found = load_published(tmp_path)
    for layer in (0, 1):
        for name in ("q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj"):
            weight = model.layers[layer].attention.get_submodule(name).weight.detach()
            expected = dequantize_blocks(*quantize_blocks(weight))
            assert torch.equal(found.layers[layer].attention.get_submodule(name).weight, expected)
            assert not torch.equal(expected, weight)
    experts = zip(found.layers[1].feed_forward.gate_up, model.layers[1].feed_forward.gate_up.detach(), strict=True)
    for expert, weight in experts:  # gate and up are quantised apart
        expected = torch.cat([dequantize_blocks(*quantize_blocks(half)) for half in weight.chunk(2)])
        assert torch.equal(expert, expected)
    assert torch.equal(found.head.weight, model.head.weight.bfloat16().float())
    assert torch.equal(found.mtp[0].projection.weight, model.mtp[0].projection.weight.bfloat16().float())


def test_weights_are_loaded_in_the_precision_asked_for(tmp_path: Path) -> None:
    save_published(random_model(), tmp_path)
    model = load_published(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert torch.equal(model.frequencies, Transformer(CONFIG).frequencies)
    assert model.layers[0].attention_norm.weight.requires_grad


def test_another_shape_is_refused_with_name_and_both_shapes(tmp_path: Path) -> None:
    save_published(random_model(), tmp_path)
    rewrite(tmp_path, **{NORM: torch.ones(17)})
    with pytest.raises(ValueError, match=rf"{NORM} has shape \(17,\) where the config asks for \(16,\)"):
        load_published(tmp_path)


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    save_published(random_model(), tmp_path)
    rewrite(tmp_path, **{NORM: None, "model.layers.1.mlp.gate.bias": torch.ones(4)})
    with pytest.raises(ValueError, match=rf"missing: {NORM}; unexpected: model.layers.1.mlp.gate.bias\. Give the"):
        load_published(tmp_path)


def test_a_config_of_another_model_names_a_few_and_counts_the_rest(tmp_path: Path) -> None:
    save_published(random_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "hidden_size": 20}))
    with pytest.raises(ValueError, match=r"asks for \(64, 20\), .* and \d+ more; unexpected: .*eh_proj.* more"):
        load_published(tmp_path)


def test_what_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    save_published(random_model(), tmp_path / "model")
    rewrite(tmp_path / "model", **{NORM: torch.ones(17)})
    for convert in (import_checkpoint, export_checkpoint):
        with pytest.raises(ValueError, match=NORM):
            convert(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_copies_may_be_absent_but_not_differ(tmp_path: Path) -> None:
    model = random_model()
    save_published(model, tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")[COPY], model.embedding.weight)
    rewrite(tmp_path, **{COPY: None})
    assert_same_weights(load_published(tmp_path), model)
    rewrite(tmp_path, **{COPY: model.embedding.weight.detach() + 1})
    with pytest.raises(ValueError, match=rf"{COPY} differs from model.embed_tokens.weight"):
        load_published(tmp_path)


def test_a_config_may_promise_mtp_modules_that_nobody_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_published(random_model(), tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    rewrite(tmp_path, **{name: None for name in names if name.startswith("model.layers.2.")})
    with caplog.at_level(logging.WARNING):
        model = load_published(tmp_path)
    assert model.config == replace(CONFIG, num_nextn_predict_layers=0)
    assert "no MTP weights" in caplog.text


def test_half_an_mtp_module_is_refused(tmp_path: Path) -> None:
    save_published(random_model(), tmp_path)
    rewrite(tmp_path, **{"model.layers.2.enorm.weight": None})
    with pytest.raises(ValueError, match=r"missing: model.layers.2.enorm.weight"):
        load_published(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
def test_converting_writes_what_saving_writes(dtype: str, tmp_path: Path) -> None:
    model = random_model()
    save_published(model, tmp_path / "model")
    export_checkpoint(tmp_path / "model", tmp_path / "exported", dtype, shard_bytes=3000)
    save_published(model, tmp_path / "saved", dtype, shard_bytes=3000)
    files = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "exported").iterdir())
    assert len(files) > 4
    for file in files:
        assert (tmp_path / "exported" / file).read_bytes() == (tmp_path / "saved" / file).read_bytes()


def test_import_of_fp8_holds_the_dequantised_weights(tmp_path: Path) -> None:
    save_published(random_model(), tmp_path / "fp8", "fp8")
    import_checkpoint(tmp_path / "fp8", tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert_same_weights(load_published(tmp_path / "out"), load_published(tmp_path / "fp8"))


def test_a_directory_in_use_is_never_written_to(tmp_path: Path) -> None:
    save_published(random_model(), tmp_path / "model")
    (tmp_path / "out").mkdir()
    export_checkpoint(tmp_path / "model", tmp_path / "out")  # an empty one is fine
    with pytest.raises(ValueError, match="out is in use; name a directory"):
        export_checkpoint(tmp_path / "model", tmp_path / "out")


def test_a_fault_of_the_disk_leaves_no_half_export(tmp_path: Path) -> None:
    save_published(random_model(), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").mkdir()  # cannot be copied as a file, once the weights are written
    with pytest.raises(IsADirectoryError):
        export_checkpoint(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_unreadable_config_is_named(tmp_path: Path) -> None:
    save_published(random_model(), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: Expecting property name"):
        load_published(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match=r"config.json: model_type='mamba' is not supported"):
        load_published(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json is missing"):
        load_published(tmp_path)


def test_tokenizer_files_go_along(tmp_path: Path) -> None:
    save_published(random_model(), tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / "model" / name).write_text('{"added_tokens": []}')
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "model" / "README.md")
    export_checkpoint(tmp_path / "model", tmp_path / "out")
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    expected = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert written == expected
