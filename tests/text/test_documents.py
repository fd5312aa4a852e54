from fathom.text.documents import encode_documents, split_documents
from fathom.text.tokenizer import Tokenizer

BEGIN, HOLE, END = 9, 10, 11
TEXTS = [f"the {n} cats sat on mat {n}, caf\u00e9\n" for n in range(400)]


def test_a_document_stands_between_bos_and_eos(tokenizer: Tokenizer):
    assert list(encode_documents(tokenizer, ["17+26=43", "a"])) == [
        [1, *tokenizer.encode("17+26=43"), 2],
        [1, *tokenizer.encode("a"), 2],
    ]


def test_rearranged_documents_are_prefix_suffix_middle(tokenizer: Tokenizer):
    for text, ids in zip(TEXTS, encode_documents(tokenizer, TEXTS, fim_rate=1.0), strict=True):
        hole, end = ids.index(HOLE), ids.index(END)
        assert ids[:2] == [1, BEGIN]
        assert ids[-1] == 2
        prefix, suffix, middle = ids[2:hole], ids[hole + 1 : end], ids[end + 1 : -1]
        assert tokenizer.decode(prefix) + tokenizer.decode(middle) + tokenizer.decode(suffix) == text


def test_cuts_vary(tokenizer: Tokenizer):
    holes = [ids.index(HOLE) / len(ids) for ids in encode_documents(tokenizer, TEXTS, fim_rate=1.0)]
    assert min(holes) < 0.1
    assert max(holes) > 0.8


def test_the_rate_is_kept_and_the_choice_is_the_documents_own(tokenizer: Tokenizer):
    mixed = list(encode_documents(tokenizer, TEXTS, fim_rate=0.25, seed=1))
    assert 70 < sum(BEGIN in ids for ids in mixed) < 130
    assert list(encode_documents(tokenizer, TEXTS[::-1], fim_rate=0.25, seed=1)) == mixed[::-1]
    assert list(encode_documents(tokenizer, TEXTS, fim_rate=0.25, seed=2)) != mixed
    assert not any(BEGIN in ids for ids in encode_documents(tokenizer, TEXTS, fim_rate=0.0))


def test_many_documents_keep_their_order(tokenizer: Tokenizer):
    texts = [str(n) for n in range(1000)] * 3  # more than are encoded at once
    assert list(encode_documents(tokenizer, texts)) == [[1, tokenizer.id_of(text), 2] for text in texts]


def test_split_is_by_hash():
    split = split_documents(TEXTS, 0.2)
    assert 50 < len(split.validation) < 110
    assert sorted(split.train + split.validation) == sorted(TEXTS)
    doubled = split_documents(TEXTS[::-1] + TEXTS, 0.2)
    assert set(doubled.validation) == set(split.validation)
    assert not set(doubled.train) & set(doubled.validation)


def test_training_is_never_left_empty():
    assert split_documents(["a", "b"], 1.0) == (["a", "b"], [])
    assert split_documents(["a", "b"], 0.0) == (["a", "b"], [])
