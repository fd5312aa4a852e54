"""GGUF files written here, read by Fathom and by transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fathom.checkpoint.bpe import CUTS
from fathom.checkpoint.gguf import GGUFFile
from fathom.checkpoint.hub import import_checkpoint, load_published
from fathom.checkpoint.names import published_views
from fathom.config import AttentionConfig, ModelConfig, MoEConfig, RopeConfig
from fathom.model import Transformer
from fathom.model.rope import rope_frequencies

gguf = pytest.importorskip("gguf")

SHORT = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOKENS = torch.tensor([[3, 17, 250, 8, 99, 41, 0, 7]])
LLAMA3 = RopeConfig(theta=5e5, scaling="llama3", factor=32.0, original_max_position_embeddings=8192)


def model_config(family: str, head_dim: int = 16, **fields: object) -> ModelConfig:
    attention = AttentionConfig(
        kind="gqa",
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        attention_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )
    shape = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    rest = {"num_nextn_predict_layers": 0, "moe": MoEConfig(n_routed_experts=0), "max_position_embeddings": 512}
    return ModelConfig(model_type=family, attention=attention, **{**shape, **rest, **fields})


def random_model(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(model.state_dict().items()):
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
    return model


def short_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in SHORT:
        return f"{SHORT[module]}.{kind}"
    _, _, layer, leaf = module.split(".", 3)
    return f"blk.{layer}.{SHORT[leaf]}.{kind}"


def pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in neighbouring pairs, as llama.cpp keeps those of Llama."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model: Transformer, path: Path, kind: str = "F32", tokenizer: Tokenizer | None = None) -> None:
    config = model.config
    a = config.attention
    writer = gguf.GGUFWriter(path, config.model_type)
    if tokenizer is not None:
        add_tokenizer(writer, tokenizer)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(a.num_attention_heads)
    writer.add_head_count_kv(a.num_key_value_heads)
    writer.add_key_length(a.head_dim)
    writer.add_rope_dimension_count(a.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_vocab_size(config.vocab_size)
    if config.rope.scaling == "llama3":
        plain = rope_frequencies(RopeConfig(theta=config.rope.theta), a.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / rope_frequencies(config.rope, a.head_dim)).numpy())
    for name, view in published_views(model).items():
        values = view.numpy()
        if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            values = pairs(values, a.num_attention_heads if "q_proj" in name else a.num_key_value_heads)
        stored = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        data = gguf.quants.quantize(np.ascontiguousarray(values), stored)
        writer.add_tensor(short_name(name), data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE that cuts text as Qwen's does, with two special tokens behind the merges."""
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(CUTS["qwen2"]), behavior="isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, whole])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    tokenizer.add_special_tokens(["<|start|>", "<|end|>"])
    return tokenizer


def add_tokenizer(writer: "gguf.GGUFWriter", tokenizer: Tokenizer) -> None:
    described = json.loads(tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token.startswith("<|") else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id("<|start|>"))
    writer.add_eos_token_id(tokenizer.token_to_id("<|end|>"))
    writer.add_chat_template("{{ messages[0]['content'] }}")


@pytest.mark.parametrize(
    "config",
    [
        model_config("llama", rms_norm_eps=1e-5),
        model_config("llama", tie_word_embeddings=True, rope=LLAMA3),
        model_config("qwen2", rope=RopeConfig(theta=1e6)),
        model_config("qwen3", tie_word_embeddings=True),
    ],
    ids=["llama", "llama3_tied", "qwen2", "qwen3_tied"],
)
def test_config_and_every_weight_come_back(config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(config)
    write_gguf(model, tmp_path / "model.gguf")
    found = load_published(tmp_path / "model.gguf")
    assert found.config == config
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, atol=0, rtol=0)


@pytest.mark.parametrize(("family", "head_dim"), [("llama", 16), ("qwen2", 16), ("qwen3", 128)])
def test_transformers_reads_the_same_model(family: str, head_dim: int, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF through it")
    transformers = pytest.importorskip("transformers")
    write_gguf(random_model(model_config(family, head_dim)), tmp_path / "model.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours = load_published(tmp_path / "model.gguf")
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(TOKENS)), theirs.eval()(TOKENS).logits, atol=1e-5, rtol=0)


def test_eight_bit_weights_come_back_within_a_step(tmp_path: Path) -> None:
    model = random_model(model_config("llama"))
    write_gguf(model, tmp_path / "model.gguf", kind="Q8_0")
    found = load_published(tmp_path / "model.gguf").state_dict()
    for name, tensor in model.state_dict().items():
        steps = tensor.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127  # blocks of 32 share a scale
        error = (found[name] - tensor).unflatten(-1, (-1, 32)).abs()
        assert (error <= 0.57 * steps).all()  # half a step, and 127 times the rounding of the scale to float16
        assert (error > 0).any() or tensor.dim() == 1


def test_import_writes_weights_and_tokenizer(tmp_path: Path) -> None:
    tokenizer = train_tokenizer()
    config = model_config("qwen2", vocab_size=tokenizer.get_vocab_size())
    model = random_model(config)
    write_gguf(model, tmp_path / "model.gguf", tokenizer=tokenizer)
    import_checkpoint(tmp_path / "model.gguf", tmp_path / "out")
    imported = load_published(tmp_path / "out")
    assert (imported.config.bos_token_id, imported.config.eos_token_id) == (300, 301)
    assert torch.equal(imported.layers[1].feed_forward.gate_up.weight, model.layers[1].feed_forward.gate_up.weight)
    found = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    text = "<|start|>It's 1234 tensors,\n  d\u0065\u0301ja vu<|end|>"
    assert found.encode(text).ids == tokenizer.encode(text).ids
    assert found.decode(found.encode(text).ids) == "It's 1234 tensors,\n  d\u00e9ja vu"
    named = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (named["bos_token"], named["eos_token"]) == ("<|start|>", "<|end|>")
    assert named["chat_template"] == "{{ messages[0]['content'] }}"


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGML, not GGUF, and long enough to be read")
    with pytest.raises(ValueError, match=r"broken.gguf is no whole GGUF file"):
        GGUFFile(tmp_path / "broken.gguf")
    with pytest.raises(ValueError, match=r"absent.gguf does not exist"):
        GGUFFile(tmp_path / "absent.gguf")
    writer = gguf.GGUFWriter(tmp_path / "rwkv.gguf", "rwkv7")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ValueError, match="architecture 'rwkv7' is not read from GGUF; choose one of llama, qwen2, qwen3"
    ):
        GGUFFile(tmp_path / "rwkv.gguf")


def test_rope_divisors_of_another_rule_are_refused(tmp_path: Path) -> None:
    rope = RopeConfig(theta=5e5, scaling="llama3", factor=32.0, original_max_position_embeddings=2048)
    write_gguf(random_model(model_config("llama", rope=rope)), tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"rope_freqs.weight does not follow Llama 3's rule"):
        GGUFFile(tmp_path / "model.gguf")
