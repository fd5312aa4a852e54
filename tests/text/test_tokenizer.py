import json
import random
import subprocess
import sys

import pytest

from fathom.text.special import SPECIAL_TOKENS
from fathom.text.tokenizer import ALPHABET, MINIMUM_VOCABULARY, Tokenizer


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


def test_ids_stand_in_the_documented_order(tokenizer: Tokenizer):
    assert [tokenizer.id_of(token) for token in SPECIAL_TOKENS] == list(range(12))
    assert SPECIAL_TOKENS[:6] == ("<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<think>")
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert sorted(tokenizer.id_of(stand_in) for stand_in in ALPHABET) == list(range(12, 268))
    assert [tokenizer.id_of(str(n)) for n in range(10, 1000)] == list(range(268, 1258))
    assert MINIMUM_VOCABULARY == 1258
    assert tokenizer.vocab_size == 1278


def test_every_integer_to_999_is_one_token(tokenizer: Tokenizer):
    assert all(len(ids) == 1 for ids in tokenizer.encode_batch([str(n) for n in range(1000)]))
    assert pieces(tokenizer, "a212b") == ["a", "212", "b"]
    assert pieces(tokenizer, "12345678") == ["123", "456", "78"]
    assert pieces(tokenizer, "1234") == ["123", "4"]


def test_digits_stay_whole_though_training_saw_other_groups():
    trained = Tokenizer.train(["21 21 21 2121 a21 a21 a21"] * 9, MINIMUM_VOCABULARY + 9)
    assert pieces(trained, "a212b") == ["a", "212", "b"]
    merges = json.loads(trained.json)["model"]["merges"]
    assert not any(character.isdigit() for merge in merges for part in merge for character in part)


def test_signs_after_numbers_stand_alone():
    trained = Tokenizer.train(["x)*( y)*( z)*( =-= =-= -( -("] * 9, MINIMUM_VOCABULARY + 30)
    assert pieces(trained, "(8+4)*2-(3-8)=-5") == list("(8+4)*2-(3-8)=-5")


def test_a_special_token_in_plain_text_stays_text(tokenizer: Tokenizer):
    text = "a<|user|></think><|eos|>b"
    assert min(tokenizer.encode(text)) >= 12
    assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text
    assert min(min(ids) for ids in tokenizer.encode_batch(list(SPECIAL_TOKENS))) >= 12
    template = tokenizer.encode_template(text)
    assert [token for token in template if token < 12] == [3, 6, 2]
    assert tokenizer.decode(template) == text
    assert tokenizer.decode(template, skip_special=True) == "ab"


def test_any_text_comes_back(tokenizer: Tokenizer):
    rng = random.Random(0)
    planes = [range(0x20), range(0x20, 0x7F), range(0xA0, 0x2FF), range(0x2000, 0x2070), range(0x4E00, 0x4F00)]
    planes += [range(0x660, 0x66A), range(0x1F600, 0x1F650), range(0xE000, 0xE010), range(0x10FFF0, 0x110000)]
    texts = ["".join(chr(rng.choice(rng.choice(planes))) for _ in range(30)) for _ in range(300)]
    texts += ["", " ", "\n", "  \n\n  x\t ", "\r\n\r\n", "cafe\u0301 caf\u00e9", "\ufeffbom"]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts
    assert [tokenizer.encode(text) for text in texts] == tokenizer.encode_batch(texts)


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer):
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode("a\ud800")


def test_stream_equals_decode_for_text_and_for_any_ids(tokenizer: Tokenizer):
    rng = random.Random(0)
    sequences = [[rng.randrange(tokenizer.vocab_size) for _ in range(12)] for _ in range(200)]
    sequences += [[rng.randrange(12, 268) for _ in range(12)] for _ in range(200)]
    sequences += [tokenizer.encode("na\u00efve \U0001f600\u4e2d 42")]
    for skip in (False, True):
        for ids in sequences:
            stream = tokenizer.stream(skip)
            assert "".join([*map(stream.step, ids), stream.finish()]) == tokenizer.decode(ids, skip)


def test_stream_holds_back_half_a_character(tokenizer: Tokenizer):
    stream = tokenizer.stream()
    ids = tokenizer.encode("\u4e2d")
    assert [stream.step(token) for token in ids] == ["", "", "\u4e2d"]
    assert stream.step(ids[0]) == ""
    assert stream.finish() == "\ufffd"


def test_save_and_load_keep_the_hash(tokenizer: Tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.hash == tokenizer.hash
    assert len(loaded.hash) == 64
    assert loaded.encode("the 212 cats<think>") == tokenizer.encode("the 212 cats<think>")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_equal_texts_give_an_equal_hash_in_another_process(tokenizer: Tokenizer):
    code = (
        "from fathom.text.tokenizer import *;"
        "texts = ['the cat sat on the mat, and the dog sat there.\\n', '<think> 12 cats and 7 dogs </think>\\n'] * 3;"
        "print(Tokenizer.train(texts, MINIMUM_VOCABULARY + 20).hash)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == tokenizer.hash
    assert Tokenizer.train(["another text"] * 3, MINIMUM_VOCABULARY + 20).hash != tokenizer.hash


def test_bad_input_is_named(tokenizer: Tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size=1257 is too small.*1258"):
        Tokenizer.train(["text"], 1257)
    with pytest.raises(ValueError, match="does not exist"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"broken.json is not a tokenizer.json"):
        Tokenizer.load(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="no entry '<none>'"):
        tokenizer.id_of("<none>")
