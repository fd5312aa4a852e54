"""Byte-level BPE in which every integer from 0 to 999 is one token.

A small model cannot learn arithmetic on digits cut at random places, so digits never take part in merges: a run of them
is cut from the left in threes, and each piece is a vocabulary entry of its own.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BytePairEncoder

from fathom.text.adopted import Adopted
from fathom.text.special import BOS, EOS, PAD, SPECIAL_TOKENS

INTEGERS = 1000  # 0 to 999 are single tokens
ALPHABET = tuple(sorted(pre_tokenizers.ByteLevel.alphabet()))  # one printable stand-in per byte
MINIMUM_VOCABULARY = len(SPECIAL_TOKENS) + len(ALPHABET) + INTEGERS - 10  # the ten digits are bytes already

CONTROL = re.compile(r"<\S+>|\[[A-Z_/]+\]")  # the look of a token that stands for a role, a tag or an end

_PIECES = "|".join(
    (
        r"[0-9]{1,3}",  # digits in threes from the left
        r"\p{N}",  # any other numeral alone
        r"(?<=[0-9)])[-+*/=()]",  # a sign after a number stands alone, so `)*` never becomes one token
        r"'\p{L}+",  # 's, 'd, 'tis
        r" ?[\p{L}\p{M}]+",  # a word takes one space along
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",  # punctuation keeps the line end that follows it
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # leave the last space to the next word
        r"\s+",
    )
)


class Tokenizer:
    """Text to token ids and back, without loss for any Unicode text.

    `encode` is for text of unknown origin and never yields a special token; `encode_template` is for text of our own,
    in which `<think>` and its like are meant.
    """

    def __init__(self, serialized: str, adopted: Adopted | None = None) -> None:
        """Take the JSON text of a `tokenizer.json`, and how a published model is asked where it is one's own."""
        self.adopted = adopted
        self._template = BytePairEncoder.from_str(serialized)
        self._plain = BytePairEncoder.from_str(_all_special(serialized))
        self._plain.encode_special_tokens = True

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn merges from `texts` until the vocabulary has `vocab_size` entries.

        Entries in order: special tokens, 256 bytes, the integers 10 to 999, merges. Equal texts give an equal
        tokenizer. Texts too small for that many merges give fewer entries. Raises ValueError if `vocab_size` has no
        room for the entries that come before the merges.
        """
        if vocab_size < MINIMUM_VOCABULARY:
            raise ValueError(
                f"vocab_size={vocab_size} is too small: special tokens, bytes and the integers 0-999 take "
                f"{MINIMUM_VOCABULARY} entries; give at least that many"
            )
        return cls(_assemble(_learn_merges(texts, vocab_size - MINIMUM_VOCABULARY)))

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Read a `tokenizer.json`, and a prompt.json beside it; ValueError if there is none or it is broken."""
        try:
            serialized = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise ValueError(f"{path} does not exist; run `fathom tokenize` first") from error
        try:
            return cls(serialized, Adopted.beside(Path(path)))
        except Exception as error:  # the parser raises plain Exception
            raise ValueError(f"{path} is not a tokenizer.json ({error}); run `fathom tokenize` again") from error

    def save(self, path: Path | str) -> None:
        """Write `tokenizer.json` so that a reader sees the old file or the new one, never half of it."""
        path = Path(path)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(self.json, encoding="utf-8")
            if self.adopted:
                self.adopted.save(path)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def encode(self, text: str, whole: bool = False) -> list[int]:
        """Ids of `text`; a special token spelled out in it stays plain text. `whole` as in `encode_template`."""
        return _encode(self._plain, [text], add_special_tokens=not whole)[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, on all cores."""
        return _encode(self._plain, texts)

    @cached_property
    def controls(self) -> frozenset[str]:
        """What a text must not spell by chance where it is read as a template: `encode` never yields one of these."""
        added = json.loads(self.json).get("added_tokens") or []
        return frozenset(each["content"] for each in added if _controls(each))

    def encode_template(self, text: str, whole: bool = False) -> list[int]:
        """Ids of `text`, in which special tokens are meant as such. Never give it a user's words.

        `whole` text has its begin-of-sequence token already, which some published tokenizers would add.
        """
        return _encode(self._template, [text], add_special_tokens=not whole)[0]

    def decode(self, ids: Sequence[int] | Integer[np.ndarray, " T"], skip_special: bool = False) -> str:
        """Text of `ids`; bytes that form no character become U+FFFD."""
        return self._template.decode(np.asarray(ids, np.int64).tolist(), skip_special_tokens=skip_special)

    def stream(self, skip_special: bool = False) -> "TokenStream":
        """A decoder that is fed one id at a time."""
        return TokenStream(self._template, skip_special)

    def id_of(self, token: str) -> int:
        """The id of one vocabulary entry; ValueError if there is none."""
        found = self._template.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no entry {token!r}; train one with `fathom tokenize`")
        return found

    def entry(self, token: int) -> str:
        """The vocabulary entry of an id; ValueError if there is none."""
        found = self._template.id_to_token(token)
        if found is None:
            raise ValueError(f"the tokenizer has no entry of id {token}; its highest is {self.vocab_size - 1}")
        return found

    @cached_property
    def json(self) -> str:
        """The content of `tokenizer.json`."""
        return self._template.to_str()

    @cached_property
    def hash(self) -> str:
        """Hex SHA-256 of the JSON and of how questions are put: equal hashes cut text equally."""
        return hashlib.sha256(f"{self.json}{self.adopted or ''}".encode()).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """Number of entries, special tokens included."""
        return self._template.get_vocab_size()

    @cached_property
    def pad_id(self) -> int:
        """Id that fills rows beyond their text."""
        return self.id_of(self.adopted.pad if self.adopted else PAD)

    @cached_property
    def bos_id(self) -> int:
        """Id that opens every document and prompt of Fathom's own tokenizers."""
        return self.id_of(BOS)

    @cached_property
    def eos_id(self) -> int:
        """Id that ends every document and reply."""
        return self.id_of(self.adopted.stop[0] if self.adopted else EOS)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a reply of the model."""
        return frozenset(map(self.id_of, self.adopted.stop)) if self.adopted else frozenset({self.eos_id})


class TokenStream:
    """Decodes ids as they arrive and holds back the bytes of an unfinished character."""

    def __init__(self, encoder: BytePairEncoder, skip_special: bool) -> None:
        self._encoder = encoder
        self._skip_special = skip_special
        self._stream = decoders.DecodeStream(skip_special_tokens=skip_special)
        self._held: list[int] = []

    def step(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._held.append(token)
        text = self._stream.step(self._encoder, token)
        if text is None:
            return ""
        self._held.clear()
        return text

    def finish(self) -> str:
        """What is held back when no more ids come."""
        held, self._held = self._held, []
        return self._encoder.decode(held, skip_special_tokens=self._skip_special)


def _controls(added: dict[str, Any]) -> bool:
    """Whether an added token steers a model: published tokenizers call `<think>` and its like no special ones."""
    return added["special"] or CONTROL.fullmatch(added["content"]) is not None


def _all_special(serialized: str) -> str:
    """A tokenizer in which all tokens that steer a model count as special, so that plain text can be kept from them."""
    try:
        fields = json.loads(serialized)
    except ValueError:  # which the parser says better
        return serialized
    added = fields.get("added_tokens") or []
    if all(each["special"] for each in added if _controls(each)):
        return serialized
    for each in added:
        each["special"] = _controls(each)
    return json.dumps(fields)


def _encode(encoder: BytePairEncoder, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
    try:
        return [encoding.ids for encoding in encoder.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]
    except TypeError as error:
        raise ValueError("a text holds half of a surrogate pair, which is no character; remove it") from error


def _split(*first: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    pieces = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*first, pieces, to_bytes])


def _learn_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    encoder = BytePairEncoder(models.BPE())
    encoder.pre_tokenizer = _split(pre_tokenizers.Split(Regex("[0-9]+"), "removed"))
    trainer = trainers.BpeTrainer(
        vocab_size=len(ALPHABET) + count,
        min_frequency=2,
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    encoder.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(encoder.to_str())["model"]["merges"]]


def _assemble(merges: list[tuple[str, str]]) -> str:
    entries = [*SPECIAL_TOKENS, *ALPHABET, *map(str, range(INTEGERS)), *(left + right for left, right in merges)]
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    # ignore_merges finds a whole piece in the vocabulary first: no merge leads to the integers
    encoder = BytePairEncoder(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    encoder.pre_tokenizer = _split()
    encoder.decoder = decoders.ByteLevel()
    added = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    encoder.add_special_tokens(added)  # pyright: ignore[reportUnknownMemberType]  (its stub leaves the list bare)
    return encoder.to_str()
