"""Thinking told from the answer wherever the text is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.serve.thinking import Splitter, count_thinking
from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer

# text, whether the prompt opened the thinking, thinking, answer
CASES = [
    ("a\u4f60</think>b\U0001f600", True, "a\u4f60", "b\U0001f600"),  # opened by the template
    ("<think>a</think>b", False, "a", "b"),  # by the model
    (" \n<think>a</think>b", False, "a", "b"),
    ("plain < text", False, "", "plain < text"),  # not at all
    ("<thin", False, "", "<thin"),
    ("a</thin", True, "a</thin", ""),  # never closed
    ("a</think>b</think>c", True, "a", "b</think>c"),  # closed twice
    ("</think>b", True, "", "b"),
    ("a<</think>", True, "a<", ""),
    ("a</think></think", True, "a", "</think"),
    ("b</think>c", False, "", "b</think>c"),  # disabled: nothing opened, nothing to close
]


@pytest.mark.parametrize(("text", "opened", "thinking", "answer"), CASES)
def test_every_two_cuts_sort_alike(text: str, opened: bool, thinking: str, answer: str) -> None:
    for first, second in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        splitter = Splitter(opened)
        parts = [splitter.feed(text[:first]), splitter.feed(text[first:second]), splitter.feed(text[second:], True)]
        assert ("".join(part[0] for part in parts), "".join(part[1] for part in parts)) == (thinking, answer)


@given(st.lists(st.sampled_from(["<", "/", "think>", "</think>", "<think>", "\u00e9", "\n", "x"])), st.booleans())
def test_letter_by_letter_is_as_all_at_once(parts: list[str], opened: bool) -> None:
    text = "".join(parts)
    at_once, slowly = Splitter(opened), Splitter(opened)
    letters = [slowly.feed(letter) for letter in text] + [slowly.feed("", True)]
    sorted_slowly = "".join(each[0] for each in letters), "".join(each[1] for each in letters)
    assert sorted_slowly == at_once.feed(text, True)
    assert slowly.thinks == at_once.thinks


def test_thinking_is_counted_in_tokens() -> None:
    tokenizer = Tokenizer.train([], MINIMUM_VOCABULARY)
    thought, spelled = tokenizer.encode("\u4f60 12"), tokenizer.encode("</think>")
    close = tokenizer.id_of("</think>")
    assert len(spelled) == 8
    answer = tokenizer.encode("34")
    assert count_thinking([*thought, close, *answer], tokenizer.decode, True) == len(thought)
    assert count_thinking([*thought, *spelled, *answer], tokenizer.decode, True) == len(thought)  # a tag of many tokens
    assert count_thinking(thought, tokenizer.decode, True) == len(thought)
    assert count_thinking([close, *answer], tokenizer.decode, True) == 0
    assert count_thinking([*thought, close], tokenizer.decode, False) == 0
    opening = tokenizer.id_of("<think>")
    assert count_thinking([opening, *thought, close], tokenizer.decode, False) == 1 + len(thought)
