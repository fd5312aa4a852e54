"""A shard: documents as one flat array of token ids on disk, read through a memory map.

    FATHOMSH | header length, 8 bytes | header, JSON | document borders, int64 | token ids, uint16 or uint32

All numbers are little-endian. The header names the tokenizer by hash and sums the rest up by SHA-256.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Int64, Integer

from fathom.text.tokenizer import Tokenizer

MAGIC = b"FATHOMSH"
DTYPES = ("<u2", "<u4")  # of a token id
ALIGNMENT = 64  # bytes; the header is padded so that the arrays start on such a border


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a shard says of itself."""

    version: int
    tokenizer: str  # hash of the tokenizer that cut the text
    dtype: str
    documents: int
    tokens: int
    sha256: str  # of everything after the header


@dataclass(frozen=True)
class Shard:
    """Documents of one source, open for reading."""

    path: Path
    tokens: Integer[np.ndarray, " N"]  # memory-mapped
    borders: Int64[np.ndarray, " M"]  # one more than documents: document d is tokens[borders[d] : borders[d + 1]]

    @property
    def documents(self) -> int:
        """How many documents the shard holds."""
        return len(self.borders) - 1

    def document(self, number: int) -> Integer[np.ndarray, " T"]:
        """The ids of one document."""
        return self.tokens[self.borders[number] : self.borders[number + 1]]


def write_shard(path: Path | str, documents: Iterable[Sequence[int] | np.ndarray], tokenizer: Tokenizer) -> Shard:
    """Write documents of token ids and open them. The file appears whole or not at all.

    Raises ValueError when there is no document.
    """
    path = Path(path)
    dtype = np.dtype(DTYPES[tokenizer.vocab_size > 1 << 16])
    arrays = [np.asarray(document, dtype) for document in documents]
    if not arrays:
        raise ValueError(f"{path} would hold no document; give at least one")
    borders = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype("<i8")
    payload = borders.tobytes() + np.concatenate(arrays).tobytes()
    header = Header(
        version=1,
        tokenizer=tokenizer.hash,
        dtype=dtype.str,
        documents=len(arrays),
        tokens=int(borders[-1]),
        sha256=hashlib.sha256(payload).hexdigest(),
    )
    _write_whole(path, _render_header(header) + payload)
    return open_shard(path, tokenizer)


def open_shard(path: Path | str, tokenizer: Tokenizer) -> Shard:
    """Map a shard into memory after checking it.

    Raises ValueError for a file that does not exist, is no shard, is cut short or altered, or was cut by another
    tokenizer.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; run `fathom tokenize` first")
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    header, start = _parse_header(path, content)
    if header.tokenizer != tokenizer.hash:
        raise ValueError(
            f"{path} was cut by another tokenizer ({header.tokenizer[:12]}, not {tokenizer.hash[:12]}); "
            "delete it and run `fathom tokenize` again"
        )
    border_bytes, token_bytes = 8 * (header.documents + 1), np.dtype(header.dtype).itemsize * header.tokens
    payload = content[start:]
    if len(payload) != border_bytes + token_bytes or hashlib.sha256(payload.data).hexdigest() != header.sha256:
        _refuse(path)
    return Shard(
        path=path,
        tokens=payload[border_bytes:].view(header.dtype),
        borders=np.array(payload[:border_bytes].view("<i8")),
    )


def _render_header(header: Header) -> bytes:
    text = json.dumps(asdict(header)).encode()
    padded = text + b" " * (-(len(MAGIC) + 8 + len(text)) % ALIGNMENT)
    return MAGIC + len(padded).to_bytes(8, "little") + padded


def _parse_header(path: Path, content: np.ndarray) -> tuple[Header, int]:
    """The header and where the arrays start."""
    opening = content[: len(MAGIC) + 8].tobytes()
    if not opening.startswith(MAGIC):
        _refuse(path)
    start = len(opening) + int.from_bytes(opening[len(MAGIC) :], "little")
    try:
        header = Header(**json.loads(content[len(opening) : start].tobytes()))
    except (ValueError, TypeError):
        _refuse(path)
    if header.dtype not in DTYPES:
        _refuse(path)
    return header, start


def _refuse(path: Path) -> NoReturn:
    raise ValueError(f"{path} is damaged or no shard; delete it and run `fathom tokenize` again")


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
