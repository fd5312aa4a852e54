import hashlib
import json

import numpy as np
import pytest

from fathom.text.shards import open_shard, write_shard
from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer

DOCUMENTS = [[1, 300, 2], [1, 2], [1, 1200, 7, 2]]


def test_documents_come_back(tokenizer: Tokenizer, tmp_path):
    write_shard(tmp_path / "new" / "a.shard", iter(DOCUMENTS), tokenizer)
    shard = open_shard(tmp_path / "new" / "a.shard", tokenizer)
    assert shard.documents == 3
    assert [shard.document(n).tolist() for n in range(3)] == DOCUMENTS
    assert shard.borders.tolist() == [0, 3, 5, 9]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.shard"]


def test_the_file_is_as_documented(tokenizer: Tokenizer, tmp_path):
    write_shard(tmp_path / "a.shard", DOCUMENTS, tokenizer)
    content = (tmp_path / "a.shard").read_bytes()
    assert content[:8] == b"FATHOMSH"
    start = 16 + int.from_bytes(content[8:16], "little")
    assert start % 64 == 0
    payload = content[start:]
    assert json.loads(content[16:start]) == {
        "version": 1,
        "tokenizer": tokenizer.hash,
        "dtype": "<u2",
        "documents": 3,
        "tokens": 9,
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    assert np.frombuffer(payload[:32], "<i8").tolist() == [0, 3, 5, 9]
    assert np.frombuffer(payload[32:], "<u2").tolist() == [1, 300, 2, 1, 2, 1, 1200, 7, 2]


def test_another_tokenizer_is_refused(tokenizer: Tokenizer, tmp_path):
    write_shard(tmp_path / "a.shard", DOCUMENTS, tokenizer)
    other = Tokenizer.train(["other text"], MINIMUM_VOCABULARY)
    with pytest.raises(ValueError, match=r"a.shard was cut by another tokenizer .*delete it and run `fathom tokenize`"):
        open_shard(tmp_path / "a.shard", other)


def test_damage_anywhere_is_refused(tokenizer: Tokenizer, tmp_path):
    path = tmp_path / "a.shard"
    write_shard(path, DOCUMENTS, tokenizer)
    content = path.read_bytes()
    broken = [content[:length] for length in (0, 4, 12, 40, len(content) - 1)] + [content + b"\0"]
    for place in (3, 9, 20, content.index(b'"documents": 3') + 13, len(content) - 40, len(content) - 1):
        altered = bytearray(content)
        altered[place] ^= 4
        broken.append(bytes(altered))
    broken.append(content.replace(b"<u2", b"|O1"))
    for damaged in broken:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a.shard is damaged or no shard; delete it"):
            open_shard(path, tokenizer)
    path.write_bytes(content)
    assert open_shard(path, tokenizer).documents == 3


def test_missing_and_empty_are_refused(tokenizer: Tokenizer, tmp_path):
    with pytest.raises(ValueError, match="does not exist; run `fathom tokenize` first"):
        open_shard(tmp_path / "a.shard", tokenizer)
    with pytest.raises(ValueError, match="would hold no document"):
        write_shard(tmp_path / "a.shard", [], tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_shard(tokenizer: Tokenizer, tmp_path):
    write_shard(tmp_path / "a.shard", DOCUMENTS, tokenizer)

    def breaking():
        yield [1, 2]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_shard(tmp_path / "a.shard", breaking(), tokenizer)
    assert open_shard(tmp_path / "a.shard", tokenizer).documents == 3
