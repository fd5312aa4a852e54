"""Documents from where a user keeps them: files, a directory of source code, a Hugging Face data set, the sample."""

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from fathom.text.sections import split_text

SAMPLE = Path(__file__).parent / "sample"
_SOURCE_NAME = re.compile(
    r"\.(c|cc|cpp|cu|cuh|css|go|h|hpp|html|java|js|jl|kt|lua|md|php|pl|py|pyi|pyx|r|rb|rs|rst|scala|sh|sql|swift|toml|ts"
    r"|txt|yaml|yml)$",
    re.IGNORECASE,
)
MAX_SOURCE_BYTES = 1_000_000  # larger files of a source tree are mostly data

log = logging.getLogger(__name__)


def read_documents(sources: Sequence[str]) -> list[str]:
    """All documents of `sources`, in order.

    A source is "sample", a file (.txt, .jsonl, .parquet), a directory of source code, or `hf:NAME`. Records give
    their field `text`, or the one named after `#`: `chats.jsonl#content`. Raises ValueError for a source that does
    not exist, is of another kind, is not UTF-8 text or holds no text.
    """
    documents: list[str] = []
    for source in sources:
        found = [document for document in read_source(source) if document.strip()]
        if not found:
            raise ValueError(f"{source} holds no text; name a source that does")
        documents += found
    return documents


def read_source(source: str) -> Iterator[str]:
    """Documents of one source, blank ones included."""
    if source == "sample":
        return _read_texts(sorted(SAMPLE.glob("*.txt")))
    name, field = _split_field(source)
    if name.startswith("hf:"):
        return _read_hub(name.removeprefix("hf:"), field)
    path = Path(name)
    if not path.exists():
        raise ValueError(f'{name} does not exist; name a file, a directory, hf:NAME or "sample"')
    if path.is_dir():
        return _read_sources(path)
    match path.suffix:
        case ".txt":
            return _read_texts([path])
        case ".jsonl":
            return _read_jsonl(path, field)
        case ".parquet":
            return _read_parquet(path, field)
        case _:
            raise ValueError(f"{name} is of no known kind; give .txt, .jsonl, .parquet or a directory of source code")


def _split_field(source: str) -> tuple[str, str]:
    if Path(source).exists():
        return source, "text"
    name, _, field = source.partition("#")
    return name, field or "text"


def decode_text(content: bytes, name: str) -> str:
    """UTF-8 text with lines ending in a line feed; ValueError naming `name` for anything else."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text (byte 0x{content[error.start]:02x} at {error.start}); convert it to UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"{name} is binary (it holds zero bytes); name a text file")
    return text.replace("\r\n", "\n")


def _read_texts(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        yield from split_text(decode_text(path.read_bytes(), str(path)))


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _record_text(line, field, f"{path} line {number}")


def _record_text(line: bytes, field: str, place: str) -> str:
    try:
        record = json.loads(decode_text(line, place))
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON ({error.msg}); a .jsonl file holds one JSON object a line") from error
    text = record.get(field) if isinstance(record, dict) else None  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(text, str):
        name = place.rpartition(" line ")[0]
        raise ValueError(f'{place} has no text under "{field}"; add it, or name another field as {name}#FIELD')
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{place} holds half of a surrogate pair, which is no character; remove it")
    return text


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    try:
        table: Any = parquet.ParquetFile(path)
    except ValueError as error:  # pyarrow.ArrowInvalid is one
        raise ValueError(f"{path} is not a parquet file ({error}); write it again or name another") from error
    columns: list[str] = table.schema_arrow.names
    if field not in columns:
        raise ValueError(f'{path} has no column "{field}"; name one of {", ".join(columns)} as {path}#COLUMN')
    for batch in table.iter_batches(columns=[field]):
        for text in batch.column(0).to_pylist():
            if text is not None and not isinstance(text, str):
                raise ValueError(f'{path}: column "{field}" is not text; name another as {path}#COLUMN')
            yield text or ""


def _read_sources(root: Path) -> Iterator[str]:
    """Whole files by suffix, in sorted order, each content once; hidden and oversized files are left out."""
    seen: set[bytes] = set()
    skipped = 0
    for path in _walk(root):
        if not _SOURCE_NAME.search(path.name) or path.stat().st_size > MAX_SOURCE_BYTES:
            continue
        content = path.read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest in seen:
            continue
        seen.add(digest)
        try:
            yield decode_text(content, str(path))
        except ValueError:
            skipped += 1
    if skipped:
        log.warning("%s: %d files are not UTF-8 text and were left out", root, skipped)


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (
            path for name in sorted(files) if not name.startswith(".") and (path := Path(folder, name)).is_file()
        )


def _read_hub(name: str, field: str) -> Iterator[str]:
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(
            f'hf:{name} needs the extra "data" (pip install "fathomlm[data]") and, unless the data set is cached, the '
            "network; local .txt, .jsonl and .parquet files need neither"
        )
    datasets: Any = importlib.import_module("datasets")
    records: Any = datasets.load_dataset(name, split="train")
    if field not in records.column_names:
        raise ValueError(
            f'hf:{name} has no field "{field}"; name one of {", ".join(records.column_names)} as hf:{name}#FIELD'
        )
    for record in records:
        yield record[field] or ""
