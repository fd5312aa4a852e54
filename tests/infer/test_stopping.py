from collections.abc import Sequence

import pytest

from fathom.config import SamplingConfig
from fathom.infer import Engine, Request
from fathom.infer.stopping import Transcript
from fathom.model import Transformer
from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer

PIECES = ("a", "b", "ab", "ba", "cc")  # of the narrow model's tokens


def spell(tokens: Sequence[int]) -> str:
    return "".join(PIECES[token] for token in tokens)


def cut(tokens: Sequence[int], stops: Sequence[str], least: int) -> tuple[int, str, str | None]:
    """Tokens up to the first that completes a stop string behind `least` others, the text before it, and which."""
    for count in range(least + 1, len(tokens) + 1):
        text, before = spell(tokens[:count]), len(spell(tokens[: count - 1]))
        ends = [(place, s) for s in stops for place in range(len(text)) if text[place:].startswith(s)]
        if found := [(place, s) for place, s in ends if place + len(s) > before]:
            place, stop = min(found)
            return count, text[:place], stop
    return len(tokens), spell(tokens), None


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("drafts", [0, 1, 3])
@pytest.mark.parametrize("stops", [("abba",), ("bab", "aa", "cca"), ("cc", "bcc"), ("zzz",)])
@pytest.mark.parametrize("least", [0, 9])
def test_a_text_ends_before_its_first_stop_string(
    narrow: Transformer, streams: bool, drafts: int, stops: tuple[str, ...], least: int
) -> None:
    endless = Request([1, 2, 3], SamplingConfig(max_tokens=40, temperature=1.3), seed=8, stop_ids=frozenset(), n=6)
    sampling = SamplingConfig(max_tokens=40, temperature=1.3, min_tokens=least)
    request = Request([1, 2, 3], sampling, 8, frozenset(), n=6, stop=stops, decode=spell)
    wholes = Engine(narrow, rows=6).generate([endless])[0]
    engine = Engine(narrow, rows=4, drafts=drafts)
    pieces = list(engine.stream(request)) if streams else engine.generate([request])[0]
    for whole in wholes:
        count, text, stop = cut(whole.tokens, stops, least)
        mine = [piece for piece in pieces if piece.sample == whole.sample]
        assert [token for piece in mine for token in piece.tokens] == whole.tokens[:count]
        assert "".join(piece.text or "" for piece in mine) == text
        assert sum(len(piece.logprobs) for piece in mine) == count
        assert (mine[-1].finish, mine[-1].stopped_by) == ("stop" if stop else "length", stop)
        assert streams or len(mine) == 1


def test_a_stop_id_is_named_and_none_of_the_text(narrow: Transformer) -> None:
    request = Request([1, 2, 3], SamplingConfig(max_tokens=60), 5, frozenset({4}), stop=("aaaaaaaa",), decode=spell)
    (piece,) = Engine(narrow, rows=1, drafts=True).generate([request])[0]
    assert (piece.finish, piece.stopped_by, piece.tokens[-1]) == ("stop", 4, 4)
    assert piece.text == spell(piece.tokens[:-1])


def test_a_decoder_that_fails_ends_its_request_alone(narrow: Transformer) -> None:
    def decode(tokens: Sequence[int]) -> str:
        raise RuntimeError("no text")

    good = Request([1], SamplingConfig(max_tokens=9), seed=0, stop_ids=frozenset(), decode=spell)
    bad = Request([1], SamplingConfig(max_tokens=9), seed=1, stop_ids=frozenset(), decode=decode)
    watched = Request([1], SamplingConfig(max_tokens=9), seed=1, stop_ids=frozenset(), decode=decode, stop=("zz",))
    engine = Engine(narrow, rows=3)
    (fine,), (failed,), (early,) = engine.generate([good, bad, watched])
    assert (fine.finish, fine.text) == ("length", spell(fine.tokens))
    assert (failed.finish, failed.error) == (early.finish, early.error) == ("error", "RuntimeError: no text")
    assert failed.tokens == early.tokens == []
    assert not engine.busy and engine.step() == []


def feed(transcript: Transcript, tokens: Sequence[int]) -> list[str]:
    """What is handed out token by token, up to a stop string."""
    parts: list[str] = []
    for token in tokens:
        if transcript.add(token):
            break
        parts.append(transcript.take(ends=False))
    return [*parts, transcript.take(ends=True)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["thinking think the end of the text"] * 20, MINIMUM_VOCABULARY + 20)


@pytest.mark.parametrize(
    "text", ["naïve 😀 Ω, the end", "the🧮🧮end", "a�b\n\n", "<think> 1234 = 12 </think>", "ends in half 😀"]
)
def test_streamed_text_adds_up_and_breaks_no_character(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    parts = feed(Transcript(tokenizer.decode), tokens)
    assert "".join(parts) == tokenizer.decode(tokens) == text
    assert all("�" not in part for part in parts[:-1]) or "�" in text
    half = tokens[:-2] if text.endswith("😀") else tokens
    assert "".join(feed(Transcript(tokenizer.decode), half)) == tokenizer.decode(half)


@pytest.mark.parametrize("stop", ["the end", "😀", "😀 Ω", " ", "naïve", "zz", "d"])
def test_every_stop_string_is_found_across_tokens_and_never_shown(tokenizer: Tokenizer, stop: str) -> None:
    text = "naïve 😀 Ω, the end"
    transcript = Transcript(tokenizer.decode, ("never", stop))
    parts = feed(transcript, tokenizer.encode(text))
    before, found, _ = text.partition(stop)
    assert "".join(parts) == before
    assert transcript.stopped_by == (found or None)


def test_text_that_may_begin_a_stop_string_is_held_back() -> None:
    transcript = Transcript(spell, ("abab", "bb"))
    shown: list[str] = []
    for token in (2, 4, 2, 1):  # ab, cc, ab, b
        shown.append(transcript.take(ends=transcript.add(token)))
    assert shown == ["", "abcc", "", "a"]
    assert transcript.stopped_by == "bb" and transcript.take(ends=True) == ""
