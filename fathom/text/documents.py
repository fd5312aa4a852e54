"""From text to documents of token ids: the validation split, and fill-in-the-middle (V3 4.1).

Every choice hangs on a document's own content, so it stays the same whatever other documents surround it.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from fathom.text.special import FIM_BEGIN, FIM_END, FIM_HOLE
from fathom.text.tokenizer import Tokenizer

ENCODED_TOGETHER = 1024  # documents handed to the tokenizer at once


class Split(NamedTuple):
    """Documents to train on and documents kept for the validation loss."""

    train: list[str]
    validation: list[str]


def split_documents(texts: Sequence[str], validation_share: float) -> Split:
    """Set about `validation_share` of the documents apart, by hash: equal documents stay on one side.

    The training side is never empty: when every document would be kept for validation, all are trained on.
    """
    kept = [_fraction(_digest("validation", text)) < validation_share for text in texts]
    if all(kept):
        return Split(list(texts), [])
    train = [text for text, keep in zip(texts, kept, strict=True) if not keep]
    return Split(train, [text for text, keep in zip(texts, kept, strict=True) if keep])


def encode_documents(
    tokenizer: Tokenizer, texts: Sequence[str], fim_rate: float = 0.0, seed: int = 0
) -> Iterator[list[int]]:
    """Ids of each document: bos, the text, eos. A share `fim_rate` of them, drawn by hash and seed, is rearranged
    to bos fim_begin prefix fim_hole suffix fim_end middle eos.
    """
    opening, hole, end = (tokenizer.id_of(token) for token in (FIM_BEGIN, FIM_HOLE, FIM_END))
    for parts in _batches([_cut(text, fim_rate, seed) for text in texts]):
        pieces = iter(tokenizer.encode_batch([piece for cut in parts for piece in cut]))
        for cut in parts:
            match list(islice(pieces, len(cut))):
                case [prefix, middle, suffix]:
                    body = [opening, *prefix, hole, *suffix, end, *middle]
                case whole:
                    body = whole[0]
            yield [tokenizer.bos_id, *body, tokenizer.eos_id]


def _cut(text: str, fim_rate: float, seed: int) -> list[str]:
    """The text, or its prefix, middle and suffix, cut at two characters drawn uniformly."""
    digest = _digest(f"fim {seed}", text)
    if _fraction(digest) >= fim_rate:
        return [text]
    draw = random.Random(digest)
    first, second = sorted(draw.randint(0, len(text)) for _ in range(2))
    return [text[:first], text[first:second], text[second:]]


def _digest(purpose: str, text: str) -> bytes:
    return hashlib.sha256(f"{purpose}\n{text}".encode()).digest()


def _fraction(digest: bytes) -> float:
    """A digest as a number in [0, 1)."""
    return int.from_bytes(digest[:6]) / 256**6


def _batches(cuts: list[list[str]]) -> Iterator[list[list[str]]]:
    for start in range(0, len(cuts), ENCODED_TOGETHER):
        yield cuts[start : start + ENCODED_TOGETHER]
