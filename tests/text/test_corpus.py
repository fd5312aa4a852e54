import importlib.util
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from fathom.text.corpus import read_documents


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_the_sample_is_about_a_million_characters_of_english():
    documents = read_documents(["sample"])
    assert 970_000 < sum(map(len, documents)) < 990_000
    assert all(document.isascii() for document in documents)
    assert any("To be, or not to be" in document for document in documents)


def test_text_files_with_windows_line_ends(tmp_path):
    source = write(tmp_path / "a.txt", b"\xef\xbb\xbfcaf\xc3\xa9\r\nnoir\r\n")
    assert read_documents([source]) == ["caf\u00e9\nnoir"]


def test_json_lines_with_their_own_field(tmp_path):
    records = [{"text": "one", "body": "eins"}, {"text": "two", "body": "zwei"}]
    source = write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, records)))
    assert read_documents([source]) == ["one", "two"]
    assert read_documents([f"{source}#body"]) == ["eins", "zwei"]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), path)
    assert read_documents([str(path)]) == ["one", "two"]
    with pytest.raises(ValueError, match='no column "body"; name one of text, n'):
        read_documents([f"{path}#body"])
    with pytest.raises(ValueError, match='column "n" is not text'):
        read_documents([f"{path}#n"])


def test_a_source_tree_is_read_sorted_once_and_only_as_text(tmp_path, caplog):
    write(tmp_path / "b.py", "print(2)\n")
    write(tmp_path / "a" / "z.py", "print(1)\n")
    write(tmp_path / "c.py", "print(2)\n")  # the content of b.py again
    write(tmp_path / "latin.py", b"caf\xe9")
    write(tmp_path / "big.py", "x" * 1_000_001)
    write(tmp_path / "image.png", "text, but not by its name")
    write(tmp_path / ".git" / "x.py", "hidden")
    write(tmp_path / "__pycache__" / "x.py", "cached")
    write(tmp_path / "empty.py", "")
    assert read_documents([str(tmp_path)]) == ["print(2)\n", "print(1)\n"]
    assert "1 files are not UTF-8" in caplog.text


def test_sources_come_in_order(tmp_path):
    one, two = write(tmp_path / "1.txt", "one"), write(tmp_path / "2.txt", "two")
    assert read_documents([two, one]) == ["two", "one"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b" \n", "holds no text"),
        ("latin.txt", b"caf\xe9", r"latin.txt is not UTF-8 text \(byte 0xe9 at 3\)"),
        ("binary.txt", b"ab\0cd", "is binary"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', 'a.jsonl line 2 has no text under "text".*a.jsonl#FIELD'),
        ("b.jsonl", b'{"text": 3}\n', 'line 1 has no text under "text"'),
        ("c.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 has no text"),
        ("d.jsonl", b'{"text": "a"}\n\n{"text": \n', "line 3 is not JSON"),
        ("e.jsonl", b'{"text": "\\ud800 \xc3\xa9"}\n', "line 1 holds half of a surrogate pair"),
        ("f.jsonl", b'{"text": "caf\xe9"}\n', "line 1 is not UTF-8"),
        ("a.parquet", b"no parquet", "a.parquet is not a parquet file"),
        ("a.pdf", b"x", "is of no known kind; give .txt, .jsonl, .parquet"),
    ],
)
def test_bad_files_are_named(tmp_path, name: str, content: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        read_documents([write(tmp_path / name, content)])


def test_missing_and_empty_sources_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.txt does not exist"):
        read_documents(["sample", str(tmp_path / "none.txt")])
    with pytest.raises(ValueError, match="holds no text"):
        read_documents([str(tmp_path)])


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="the extra is installed")
def test_a_hub_data_set_names_the_extra_it_needs():
    with pytest.raises(ValueError, match=r'hf:owner/name needs the extra "data".*network'):
        read_documents(["hf:owner/name"])
