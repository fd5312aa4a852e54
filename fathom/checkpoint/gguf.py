"""GGUF files of Llama and Qwen models, read as a published checkpoint (needs the `gguf` extra).

A file holds its tensors under short names, perhaps quantised, and its config and tokenizer as metadata.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.checkpoint.bpe import byte_level_tokenizer
from fathom.checkpoint.tensors import Shape
from fathom.checkpoint.tokenizer import write_tokenizer_config
from fathom.config import ModelConfig, RopeConfig
from fathom.config.published import from_published
from fathom.model.rope import rope_frequencies

log = logging.getLogger(__name__)

FAMILIES = ("llama", "qwen2", "qwen3")
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_DIVISORS = "rope_freqs.weight"  # what Llama 3's rule divides each frequency by


class GGUFFile:
    """The tensors of one GGUF file under their published names, and its config.

    Raises ValueError for a file that is no GGUF, another architecture, or metadata that asks for what Fathom does
    not compute.
    """

    def __init__(self, path: Path) -> None:
        reader = _reader(path)
        self.path = path
        self._metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
        self._names = {_published(name): name for name in self._tensors if name != ROPE_DIVISORS}
        # the file counts dims from the innermost
        self.shapes: dict[str, Shape] = {
            name: tuple(int(width) for width in reversed(self._tensors[own].shape)) for name, own in self._names.items()
        }
        try:
            self.config = self._model_config()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def read(self, name: str) -> Tensor:
        """One tensor in float32, dequantised, its rows in the published order."""
        from gguf.quants import dequantize

        tensor = self._tensors[self._names[name]]
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        weight = torch.from_numpy(values.copy()).view(self.shapes[name])
        a = self.config.attention
        if self.config.model_type == "llama" and ".q_proj." in name:
            return _halves(weight, a.num_attention_heads)
        if self.config.model_type == "llama" and ".k_proj." in name:
            return _halves(weight, a.num_key_value_heads)
        return weight

    def write_tokenizer(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json where the file's tokenizer is a byte-level BPE known here."""
        text = byte_level_tokenizer(self._metadata)
        if text is None:
            kind = f"{self._metadata.get('tokenizer.ggml.model')}/{self._metadata.get('tokenizer.ggml.pre')}"
            log.warning(
                "%s: no tokenizer.json is written for its %s tokenizer; copy the published one", self.path, kind
            )
            return
        (directory / "tokenizer.json").write_text(text, encoding="utf-8")
        bos, eos, pad = (self._special(role) for role in ("bos", "eos", "padding"))
        write_tokenizer_config(directory, bos, eos, pad, self._metadata.get("tokenizer.chat_template"))

    def _special(self, role: str) -> str | None:
        number = self._metadata.get(f"tokenizer.ggml.{role}_token_id")
        return None if number is None else self._metadata["tokenizer.ggml.tokens"][number]

    def _model_config(self) -> ModelConfig:
        family = self._metadata.get("general.architecture")
        if family not in FAMILIES:
            raise ValueError(f"architecture {family!r} is not read from GGUF; choose one of {', '.join(FAMILIES)}")
        if self._metadata.get("split.count", 1) > 1:
            raise ValueError("the model is split over several files; merge them with llama-gguf-split first")
        heads = self._get("attention.head_count")
        published: dict[str, Any] = {
            "model_type": family,
            "vocab_size": self.shapes["model.embed_tokens.weight"][0] if "token_embd.weight" in self._tensors else None,
            "hidden_size": self._get("embedding_length"),
            "num_hidden_layers": self._get("block_count"),
            "intermediate_size": self._get("feed_forward_length"),
            "max_position_embeddings": self._get("context_length"),
            "rms_norm_eps": self._get("attention.layer_norm_rms_epsilon"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._get("attention.head_count_kv", heads),
            "head_dim": self._get("attention.key_length", self._get("embedding_length") // heads),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "bos_token_id": self._metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self._metadata.get("tokenizer.ggml.eos_token_id"),
            "rope_theta": self._get("rope.freq_base", 10_000.0),
            "rope_scaling": self._rope_scaling(),
        }
        return from_published(published)

    def _get(self, key: str, default: Any = None) -> Any:
        value = self._metadata.get(f"{self._metadata['general.architecture']}.{key}", default)
        if value is None:
            raise ValueError(f"the metadata lack {key}; convert the model again")
        # stored in float32: 1e-5 comes as 9.999999747378752e-06
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def _rope_scaling(self) -> dict[str, Any] | None:
        if ROPE_DIVISORS in self._tensors:
            return self._llama3_scaling()
        kind = self._get("rope.scaling.type", "none")
        if kind == "none":
            return None
        trained = self._get("rope.scaling.original_context_length", self._get("context_length"))
        factor = self._get("rope.scaling.factor")
        return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": trained}

    def _llama3_scaling(self) -> dict[str, Any]:
        """The rule behind the stored divisors: its factor is the largest, its other constants are Llama 3's own."""
        divisors = torch.from_numpy(self._tensors[ROPE_DIVISORS].data.copy()).float().flatten()
        theta = self._get("rope.freq_base", 10_000.0)
        rule = RopeConfig(
            theta=theta, scaling="llama3", factor=float(divisors.max()), original_max_position_embeddings=8192
        )
        dim = 2 * divisors.numel()
        plain = rope_frequencies(RopeConfig(theta=theta), dim)
        if not torch.allclose(plain / rope_frequencies(rule, dim), divisors, rtol=1e-3):
            raise ValueError(f"{ROPE_DIVISORS} does not follow Llama 3's rule; import the safetensors files instead")
        own = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return {"rope_type": "llama3", **{name: getattr(rule, name) for name in own}}


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs the gguf package; install it with `pip install fathomlm[gguf]`"
        ) from error
    if not path.is_file():
        raise ValueError(f"{path} does not exist; name a .gguf file")
    try:
        return GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is no whole GGUF file ({error}); fetch it again") from error


def _published(name: str) -> str:
    """token_embd.weight, blk.3.attn_q.bias, ... under their published names; unknown names stay as they are."""
    module, _, kind = name.rpartition(".")
    if module in TOP:
        return f"{TOP[module]}.{kind}"
    _, _, place = module.partition("blk.")
    layer, _, leaf = place.partition(".")
    return f"model.layers.{layer}.{LAYER[leaf]}.{kind}" if leaf in LAYER else name


def _halves(rows: Tensor, heads: int) -> Tensor:
    """GGUF lays each Llama head out in neighbouring pairs for RoPE; the published files in two halves."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
