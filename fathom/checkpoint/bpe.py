"""The tokenizer of a GGUF file as a tokenizer.json, where it is a byte-level BPE like that of Llama 3 and Qwen."""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CONTROL, USER_DEFINED = 3, 4  # token types of a GGUF file that never come from merges

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"

# How text is cut before merging, by the name that a file gives the rule; None is GPT-2's own rule.
CUTS: Mapping[str, str | None] = {
    "default": None,
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": _WORDS + r"|\p{N}{1,3}" + _REST,
    "qwen2": _WORDS + r"|\p{N}" + _REST,
    "deepseek-r1-qwen": _WORDS + r"|\p{N}" + _REST,
}
DIGIT_BY_DIGIT = ("smollm",)  # rules of GPT-2's kind that first part every digit from its neighbours


def byte_level_tokenizer(metadata: Mapping[str, Any]) -> str | None:
    """The text of a tokenizer.json from a file's `tokenizer.*` metadata; None for a kind that is not known here."""
    cut = metadata.get("tokenizer.ggml.pre", "default")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or cut not in CUTS:
        return None
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=cut == "llama-bpe"))
    if "qwen" in cut:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(CUTS[cut], cut in DIGIT_BY_DIGIT)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _post_processor(metadata, tokens)
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
    return tokenizer.to_str(pretty=True)


def _pre_tokenizer(cut: str | None, parts_digits: bool) -> pre_tokenizers.PreTokenizer:
    if cut is None:
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return (
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]) if parts_digits else words
        )
    split = pre_tokenizers.Split(Regex(cut), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _post_processor(metadata: Mapping[str, Any], tokens: list[str]) -> processors.PostProcessor:
    plain = processors.ByteLevel(trim_offsets=False)
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if bos is None or not metadata.get("tokenizer.ggml.add_bos_token", False):
        return plain
    opening = processors.TemplateProcessing(single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)])
    return processors.Sequence([plain, opening])
