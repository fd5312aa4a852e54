"""An engine with pages: the same texts as without, however few pages there are."""

import gc
import random
from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from resource import getpagesize
from typing import Any

import pytest
import torch

from fathom.config import SamplingConfig
from fathom.infer import Engine, Forced, Piece, Request
from fathom.infer.pace import Pace
from fathom.infer.scheduler import group_alike, share_budget
from fathom.model import Transformer

FEW = {"pages": 21, "page_size": 4}
POOLS: dict[str, dict[str, Any]] = {
    "ample": {"pages": 300, "page_size": 4},
    "few": FEW,
    "no prefixes": {**FEW, "prefix_cache": False},
    "small chunks": {**FEW, "step_tokens": 1},
    "pages of one token": {"pages": 84, "page_size": 1},
    "one row each": {"pages": 2, "page_size": 64},
}


def crowd(vocab_size: int, count: int = 11) -> list[Request]:
    """Requests of every kind; many of their prompts begin alike."""
    rng = random.Random(vocab_size)
    start = [rng.randrange(vocab_size) for _ in range(40)]

    def maybe(value: Any, otherwise: Any, share: float = 0.4) -> Any:
        return value if rng.random() < share else otherwise

    def allow(tokens: Sequence[int]) -> list[int]:
        return [(sum(tokens) + k) % vocab_size for k in range(3)]

    return [
        Request(
            [*start[: rng.randint(1, 40)], *(rng.randrange(vocab_size) for _ in range(rng.randint(0, 9)))],
            SamplingConfig(
                temperature=rng.choice((0.0, 0.7, 1.0)),
                top_p=maybe(0.8, 1.0),
                max_tokens=rng.randint(1, 30),
                presence_penalty=maybe(0.5, 0.0),
                frequency_penalty=maybe(0.3, 0.0),
                repetition_penalty=maybe(1.2, 1.0),
            ),
            seed=number,
            stop_ids=maybe(frozenset({rng.randrange(vocab_size)}), frozenset()),
            n=rng.choice((1, 1, 2, 4)),
            allow=rng.choice((None, None, frozenset(range(1, vocab_size)), allow)),
            forced=maybe(Forced(tokens=(1, 2, 3), after=rng.randint(0, 6), since=maybe(1, None)), None),
            logit_bias=maybe({1: 0.5}, {}),
            top_logprobs=maybe(2, 0),
            details=maybe(True, False),
            namespace=rng.choice("ab"),
            decode=letters if number % 4 == 3 else None,
            stop=("ab", "bcc") if number % 4 == 3 else (),
        )
        for number in range(count)
    ]


def letters(tokens: Sequence[int]) -> str:
    return "".join("abcde"[token % 5] for token in tokens)


def agree(pieces: Piece, other: Piece) -> None:
    """All that a request may ask for is the same, but for what says how it was reached."""
    assert (pieces.tokens, pieces.finish, pieces.text) == (other.tokens, other.finish, other.text)
    assert pieces.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    if pieces.details and other.details:
        assert pieces.details.entropy == pytest.approx(other.details.entropy, abs=1e-4)
    for likeliest, best in zip(pieces.top_logprobs or [], other.top_logprobs or [], strict=True):
        assert [token for token, _ in likeliest] == [token for token, _ in best]


@pytest.mark.parametrize(
    ("pool", "drafts"),
    [
        ("few", True),
        ("few", False),
        *(pytest.param(pool, True, marks=pytest.mark.slow) for pool in POOLS if pool != "few"),
        pytest.param("no prefixes", False, marks=pytest.mark.slow),
    ],
)
def test_texts_with_pages_are_those_without(narrow: Transformer, pool: str, drafts: int) -> None:
    requests = crowd(narrow.config.vocab_size)
    expected = Engine(narrow, rows=8, drafts=drafts)
    stretches = expected.generate(requests)
    engine = Engine(narrow, rows=8, drafts=drafts, **POOLS[pool])
    for pieces, others in zip(engine.generate(requests), stretches, strict=True):
        for piece, other in zip(pieces, others, strict=True):
            agree(piece, other)
    assert engine.acceptance == expected.acceptance  # the modules' entries are shared and read again as well
    counters = engine.counters
    assert (counters.preemptions > 0) == (pool != "ample") or pool == "one row each"
    assert (counters.prefix_hits > 0) == (pool not in ("no prefixes", "one row each"))
    assert counters.pages_used == 0 and counters.pages_free == POOLS[pool]["pages"]


@pytest.fixture(scope="module")
def deep(narrow: Transformer) -> Transformer:
    """The narrow model with three MTP modules."""
    model = Transformer(replace(narrow.config, num_nextn_predict_layers=3))
    model.initialise(torch.Generator().manual_seed(14))
    model.load_state_dict(narrow.state_dict(), strict=False)
    for module in (1, 2):
        for parameter in model.get_submodule(f"mtp.{module}.block.attention").parameters():
            parameter.data *= 4
    return model


@pytest.mark.parametrize(
    ("pool", "drafts"),
    [
        ("few", 3),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in product(POOLS, (2, 5)) if "row" not in each[0]),
    ],
)
def test_all_modules_draft_with_pages_as_they_do_without(deep: Transformer, pool: str, drafts: int) -> None:
    requests = [replace(request, top_logprobs=0, details=False) for request in crowd(5, count=7)]
    expected, engine = Engine(deep, rows=8, drafts=drafts), Engine(deep, rows=8, drafts=drafts, **POOLS[pool])
    for pieces, others in zip(engine.generate(requests), expected.generate(requests), strict=True):
        assert [piece.tokens for piece in pieces] == [piece.tokens for piece in others]
    assert engine.acceptance_by_position == expected.acceptance_by_position
    assert min(engine.acceptance_by_position[:2]) > 0
    assert (engine.counters.prefix_hits > 0) == (pool != "no prefixes")


def test_modules_read_later_what_steps_without_drafts_left_behind(
    deep: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    law = SamplingConfig(max_tokens=40)
    requests = [Request([1, 2, 3] * (1 + 2 * seed), law, seed, frozenset()) for seed in range(6)]
    found: list[tuple[list[list[int]], list[float]]] = []
    for pool in ({}, POOLS["ample"]):
        rng = random.Random(3)
        monkeypatch.setattr(Pace, "choose", lambda pace, rows, rng=rng: rng.choice((0, 0, 1, 2, 3, 4)))
        engine = Engine(deep, rows=6, drafts="auto", **pool)
        texts = [piece.tokens for (piece,) in engine.generate(requests)]
        found.append((texts, engine.acceptance_by_position))
    assert found[0] == found[1] and found[0][1][1] > 0


@pytest.mark.parametrize("drafts", [False, True])
def test_texts_in_a_crowd_with_pages_are_those_of_each_alone(model: Transformer, drafts: bool) -> None:
    requests = crowd(model.config.vocab_size)
    engine = Engine(model, rows=8, drafts=drafts, **FEW)
    for pieces, request in zip(engine.generate(requests), requests, strict=True):
        for piece, other in zip(pieces, Engine(model, rows=4).generate([request])[0], strict=True):
            agree(piece, other)


def test_streamed_pieces_with_too_few_pages_add_up_to_the_text(narrow: Transformer) -> None:
    engine = Engine(narrow, rows=8, drafts=True, pages=16, page_size=4)
    requests = [Request([1, 2, 3], SamplingConfig(max_tokens=30), seed, frozenset(), n=2) for seed in range(4)]
    ids = [engine.submit(request, stream=True) for request in requests]
    streamed: dict[tuple[int, int], list[int]] = defaultdict(list)
    while engine.busy:
        for piece in engine.step():
            streamed[piece.request, piece.sample] += piece.tokens
    assert engine.counters.preemptions > 0
    for request, pieces in zip(ids, Engine(narrow, rows=8).generate(requests), strict=True):
        assert [streamed[request, sample] for sample in range(2)] == [piece.tokens for piece in pieces]


def test_a_prompt_that_was_read_is_read_no_more(model: Transformer) -> None:
    lengths: list[int] = []
    hook = model.embedding.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    engine = Engine(model, rows=4, pages=40, page_size=4)
    prompt, sampling = list(range(22)), SamplingConfig(max_tokens=1)

    def ask(prompt: list[int], namespace: str = "") -> Piece:
        lengths.clear()
        return engine.generate([Request(prompt, sampling, seed=0, stop_ids=frozenset(), namespace=namespace)])[0][0]

    try:
        assert (ask(prompt).cached, lengths) == (0, [22])
        assert (ask(prompt).cached, lengths) == (20, [2])
        assert (ask(prompt[:20]).cached, lengths) == (16, [4])  # the last token is read for what comes next
        assert (ask(prompt[:10] + [30] * 4).cached, lengths) == (8, [6])
        assert (ask(prompt, "b").cached, lengths) == (0, [22])
        engine.swap_weights()
        assert (ask(prompt).cached, lengths) == (0, [22])
    finally:
        hook.remove()
    assert engine.counters[2:4] == (22 + 22 + 20 + 14 + 22 + 22, 20 + 16 + 8)


def test_a_dialogue_goes_on_where_its_last_answer_ended(model: Transformer) -> None:
    engine = Engine(model, rows=1, pages=40, page_size=4)
    sampling = SamplingConfig(max_tokens=15)
    first = engine.generate([Request([1, 2, 3], sampling, seed=0, stop_ids=frozenset())])[0][0]
    more = Request([1, 2, 3, *first.tokens, 9], sampling, seed=1, stop_ids=frozenset())
    (second,) = engine.generate([more])[0]
    assert second.cached == 16  # of 18 tokens, the last of which was drawn and never read
    agree(second, Engine(model, rows=1).generate([more])[0][0])


def test_samples_share_the_pages_of_their_prompt(model: Transformer) -> None:
    engine = Engine(model, rows=8, pages=40, page_size=4)
    engine.submit(Request([1] * 18, SamplingConfig(max_tokens=6), seed=0, stop_ids=frozenset(), n=8))
    engine.step()
    assert engine.counters.pages_used == 4 + 8  # four full pages once, and the fifth for each


def test_the_first_token_behind_a_long_prompt_comes_within_a_few_steps(latent: Transformer) -> None:
    lengths: list[int] = []
    hook = latent.embedding.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].numel()))
    engine = Engine(latent, rows=4, pages=200, page_size=4, step_tokens=16)
    sampling = SamplingConfig(max_tokens=8)
    try:
        early = engine.submit(Request([7], sampling, seed=0, stop_ids=frozenset()), stream=True)
        engine.step()
        long = engine.submit(Request([1, 2, 3] * 40, sampling, seed=1, stop_ids=frozenset()), stream=True)
        assert [piece.request for piece in engine.step()] == [early]
        short = engine.submit(Request([4, 5, 6], sampling, seed=2, stop_ids=frozenset()), stream=True)
        seen: dict[int, list[int]] = defaultdict(list)
        lengths.clear()
        for step in range(30):
            for piece in engine.step():
                seen[piece.request] += [step] * len(piece.tokens)
    finally:
        hook.remove()
    assert seen[short][:2] == [0, 0]  # read beside the long prompt's chunk, and decoded in the same step
    assert seen[early] == [0, 1, 2, 3, 4]  # nobody waits for more than a chunk
    assert 120 // 16 - 1 <= seen[long][0] <= 2 * 120 // 16
    assert max(lengths) <= 16
    assert not engine.busy


def test_the_oldest_ends_and_the_short_do_not_wait() -> None:
    assert share_budget([], 10) == []
    assert share_budget([100], 10) == [10]
    assert share_budget([100, 100, 3], 10) == [5, 2, 3]
    assert share_budget([2, 100, 3], 10) == [2, 5, 3]
    assert share_budget([100, 1], 10) == [9, 1]
    rng = random.Random(0)
    for _ in range(500):
        rests = [rng.randint(1, 40) for _ in range(rng.randint(1, 6))]
        budget = rng.randint(1, 60)
        shares = share_budget(rests, budget)
        assert sum(shares) == min(budget, sum(rests))
        assert all(0 <= share <= rest for share, rest in zip(shares, rests, strict=True))
        assert shares[0] >= min(rests[0], budget // 2)
        groups = group_alike(shares)
        assert sorted(n for group in groups for n in group) == [n for n, share in enumerate(shares) if share]
        for group in groups:
            wide = max(shares[number] for number in group)
            assert wide == shares[group[0]] and all(2 * shares[number] >= wide for number in group)


@pytest.mark.parametrize("drafts", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_page_is_lost_over_a_thousand_requests_cancelled_at_random(latent: Transformer, drafts: bool) -> None:
    rng = random.Random(0)
    engine = Engine(latent, rows=6, drafts=drafts, pages=9, page_size=4, step_tokens=16)
    flying, done = dict[int, set[int]](), set[tuple[int, int]]()  # samples that nobody cancelled; those that ended

    def step() -> None:
        done.update((piece.request, piece.sample) for piece in engine.step())
        engine._paging.check_pages()

    for number in range(1000):
        prompt = [1, 2, 3, 4] * rng.randint(0, 3) + [rng.randrange(5)] * 3
        sampling = SamplingConfig(max_tokens=rng.randint(1, 10), presence_penalty=rng.choice((0.0, 1.0)))
        samples = rng.randint(1, 3)
        asked = engine.submit(Request(prompt, sampling, number, frozenset({4}), n=samples))
        flying[asked] = set(range(samples))
        if rng.random() < 0.3:
            step()
        if rng.random() < 0.9:
            engine.cancel(cancelled := rng.choice(list(flying)))
            del flying[cancelled]
        if flying and rng.random() < 0.3:
            engine.cancel(cancelled := rng.choice(list(flying)), sample := rng.randrange(3))
            flying[cancelled].discard(sample)
    while engine.busy:
        step()
    assert {(number, sample) for number, samples in flying.items() for sample in samples} <= done
    assert engine.counters.pages_used == 0 and engine.counters.preemptions > 20
    last = Request([1, 2, 3, 4, 1, 2, 3, 4], SamplingConfig(max_tokens=20), 0, frozenset(), n=2)
    assert [p.tokens for p in engine.generate([last])[0]] == [
        p.tokens for p in Engine(latent, rows=6).generate([last])[0]
    ]


def test_a_cancelled_request_frees_its_pages_at_once(latent: Transformer) -> None:
    engine = Engine(latent, rows=4, pages=60, page_size=4, step_tokens=16)
    sampling = SamplingConfig(max_tokens=8)
    running = engine.submit(Request([1] * 9, sampling, seed=0, stop_ids=frozenset(), n=2))
    engine.step()
    reading = engine.submit(Request([2] * 100, sampling, seed=0, stop_ids=frozenset()))
    engine.step()
    assert engine.counters.pages_used == 4 + 25
    assert engine.cancel(reading) and engine.counters.pages_used == 4
    assert engine.cancel(running) and engine.counters.pages_used == 0
    assert not engine.busy and engine.step() == []


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("way", ["recompute", "continue"])
def test_weights_swapped_under_pages_give_what_they_give_without(narrow: Transformer, way: str, drafts: bool) -> None:
    other = Transformer(narrow.config)
    other.initialise(torch.Generator().manual_seed(1))
    requests = [
        Request([1, 2, 3] * 4, SamplingConfig(max_tokens=24), seed, frozenset(), n=2, details=True) for seed in range(3)
    ]

    def pieces(**pool: int) -> list[tuple[list[int], list[int]]]:
        engine = Engine(deepcopy(narrow), rows=8, drafts=drafts, **pool)
        for request in requests:
            engine.submit(request)
        found = [piece for _ in range(4) for piece in engine.step()]
        engine.swap_weights(other.state_dict(), in_flight=way)  # pyright: ignore[reportArgumentType]
        while engine.busy:
            found += engine.step()
        found.sort(key=lambda piece: (piece.request, piece.sample))
        return [(piece.tokens, piece.details.version if piece.details else []) for piece in found]

    with_pages, without = pieces(pages=100, page_size=4), pieces()
    assert [tokens for tokens, _ in with_pages] == [tokens for tokens, _ in without]
    assert [versions for _, versions in with_pages] == [versions for _, versions in without]
    assert {version for _, versions in with_pages for version in versions} == {0, 1}


def test_rows_that_went_on_under_other_weights_leave_nothing_to_find(latent: Transformer) -> None:
    other = Transformer(latent.config)
    other.initialise(torch.Generator().manual_seed(1))
    engine = Engine(deepcopy(latent), rows=2, pages=60, page_size=4)
    engine.submit(Request([1, 2, 3] * 5, SamplingConfig(max_tokens=12), seed=0, stop_ids=frozenset()))
    engine.step()
    engine.swap_weights(other.state_dict(), in_flight="continue")
    pieces = [piece for _ in range(12) for piece in engine.step()]
    again = Request([1, 2, 3] * 5 + pieces[0].tokens, SamplingConfig(max_tokens=12), seed=0, stop_ids=frozenset())
    (piece,) = engine.generate([again])[0]
    assert piece.cached == 0
    agree(replace(piece, version=0), Engine(other, rows=1).generate([again])[0][0])


def test_the_check_runs_when_the_engine_falls_idle(latent: Transformer) -> None:
    engine = Engine(latent, rows=2, pages=20, page_size=4)
    request = Request([1, 2, 3], SamplingConfig(max_tokens=3), seed=0, stop_ids=frozenset())
    engine.generate([request])
    engine._runner.tables.pool._holders[5] += 1
    with pytest.raises(RuntimeError, match="page 5 is counted 1 times, but held 0 times"):
        engine.generate([request])


@pytest.mark.slow
def test_memory_stays_over_ten_thousand_requests(latent: Transformer) -> None:
    """Prompts of ever other tokens, so that pages are published, kept and taken anew."""
    engine, rng = Engine(latent, rows=100, pages=150, page_size=2), random.Random(0)

    def serve(count: int) -> tuple[int, int]:
        for _ in range(count // 500):
            prompts = [[rng.randrange(40) for _ in range(5)] for _ in range(500)]
            engine.generate([Request(prompt, SamplingConfig(max_tokens=2), 0, frozenset()) for prompt in prompts])
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * getpagesize()
        return len(gc.get_objects()), resident

    objects, resident = serve(1000)
    more_objects, more_resident = serve(10_000)
    assert more_objects - objects < 1000  # a tenth of one a request
    assert more_resident - resident < 8 << 20


def test_what_no_pool_can_hold_is_refused(latent: Transformer) -> None:
    engine = Engine(latent, rows=2, pages=3, page_size=4, drafts=True)
    good = Request([1] * 6, SamplingConfig(max_tokens=6), seed=0, stop_ids=frozenset())
    late = engine.submit(good)
    message = (
        "a prompt of 6 tokens and max_tokens=7 need 4 pages of 4 places, but the engine has pages=3; "
        "shorten the prompt, lower max_tokens or give the engine more pages"
    )
    with pytest.raises(ValueError, match=message):
        engine.submit(replace(good, sampling=SamplingConfig(max_tokens=7)))
    pieces = [piece for _ in range(9) for piece in engine.step()]
    assert [(piece.request, len(piece.tokens)) for piece in pieces] == [(late, 6)]
    many = engine.generate([replace(good, n=5)])[0]  # more samples than fit at once
    assert [p.tokens for p in many] == [p.tokens for p in Engine(latent, 8).generate([replace(good, n=5)])[0]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"pages": -1}, "pages=-1 is negative"),
        ({"pages": 4, "page_size": 0}, "page_size=0 holds no token"),
        ({"pages": 4, "step_tokens": 0}, "step_tokens=0 holds no token"),
    ],
)
def test_pools_that_cannot_be_are_refused(latent: Transformer, bad: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(latent, rows=2, **bad)


def test_a_cpu_has_no_pages_unless_asked(latent: Transformer) -> None:
    assert Engine(latent, rows=2).counters == Engine(latent, rows=2, pages=0).counters == (0, 0, 0, 0, 0)
    assert Engine(latent, rows=2, pages=7).counters == (0, 7, 0, 0, 0)
