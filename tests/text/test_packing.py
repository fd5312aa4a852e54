from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fathom.text.packing import Batch, PackedLoader, ragged_arange, take_turns
from fathom.text.shards import Shard

FIELDS = ("tokens", "targets", "weights", "positions", "segments")


def shard(*documents: list[int]) -> Shard:
    borders = np.cumsum([0, *map(len, documents)])
    return Shard(Path("x"), np.concatenate(documents).astype("<u2"), borders)


def many(count: int, first: int) -> Shard:
    """Documents of 3 to 9 tokens; the second token names the document."""
    return shard(*([1, first + n, *range(500, 500 + n % 7), 2] for n in range(count)))


def loader(*shards: Shard, **changes: int) -> PackedLoader:
    settings = {"seq_len": 16, "batch_rows": 8, "seed": 3, **changes}
    return PackedLoader(shards, [1.0] * len(shards), **settings)


def assert_equal(one: Batch, other: Batch) -> None:
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


def test_a_hand_packed_example():
    batch = PackedLoader([shard([1, 10, 11, 12, 2])], [1], seq_len=4, batch_rows=3, seed=0).batch(0)
    assert batch.tokens.tolist() == [[1, 10, 11, 12], [2, 1, 10, 11], [12, 2, 1, 10]]
    assert batch.targets.tolist() == [[10, 11, 12, 2], [1, 10, 11, 12], [2, 1, 10, 11]]
    assert batch.weights.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1]]
    assert batch.segments.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.positions.tolist() == [[0, 1, 2, 3]] * 3


def test_types_and_shapes_are_the_contract():
    batch = loader(many(20, 100)).batch(0)
    assert [getattr(batch, field).dtype.name for field in FIELDS] == ["int64", "int64", "float32", "int64", "int64"]
    assert {getattr(batch, field).shape for field in FIELDS} == {(8, 16)}


def test_an_epoch_holds_every_document_once_and_whole():
    source = many(20, 100)
    size = len(source.tokens)
    stream = loader(source).rows(0, 3 * size // 16 + 1).tokens.reshape(-1).tolist()
    orders = []
    for epoch in range(3):
        tokens = stream[epoch * size : (epoch + 1) * size]
        starts = [place for place, token in enumerate(tokens) if token == 1] + [size]
        documents = [tokens[a:b] for a, b in pairwise(starts)]
        orders.append([document[1] for document in documents])
        assert sorted(documents) == sorted(source.document(n).tolist() for n in range(20))
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_targets_are_the_next_tokens_of_the_stream():
    rows = loader(many(20, 100)).rows(0, 40)
    np.testing.assert_array_equal(rows.tokens.reshape(-1)[1:], rows.targets.reshape(-1)[:-1])


def test_segments_and_weights_follow_the_documents():
    rows = loader(many(20, 100)).rows(0, 40)
    np.testing.assert_array_equal(rows.segments, np.cumsum(rows.tokens == 1, axis=1) - (rows.tokens[:, :1] == 1))
    np.testing.assert_array_equal(rows.weights, (rows.targets != 1).astype(np.float32))


def test_a_shard_shorter_than_a_row_repeats():
    rows = loader(shard([1, 7, 2]), seq_len=10).rows(5, 2)
    assert rows.tokens.tolist() == [[2, 1, 7, 2, 1, 7, 2, 1, 7, 2], [1, 7, 2, 1, 7, 2, 1, 7, 2, 1]]
    assert rows.segments[0].tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_have_the_batch_of_one(world: int):
    sources = many(20, 100), many(9, 300)
    for step in (0, 5):
        parts = [loader(*sources, rank=rank, world=world).batch(step) for rank in range(world)]
        joined = Batch(**{field: np.concatenate([getattr(part, field) for part in parts]) for field in FIELDS})
        assert_equal(joined, loader(*sources).batch(step))


def test_a_batch_depends_on_its_step_alone():
    sources = many(20, 100), many(9, 300)
    used = loader(*sources)
    for step in (0, 9, 2, 40):
        used.batch(step)
    for step in (2, 41):
        assert_equal(used.batch(step), loader(*sources).batch(step))
    assert (loader(*sources, seed=4).batch(2).tokens != used.batch(2).tokens).any()


def test_a_growing_batch_takes_the_first_rows_of_its_step():
    full = loader(many(20, 100)).batch(3)
    halves = [loader(many(20, 100), rank=rank, world=2).batch(3, rows=4) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate([half.tokens for half in halves]), full.tokens[:4])


def test_sources_are_mixed_by_share():
    mixed = PackedLoader([many(20, 100), many(30, 300)], [3, 1], seq_len=16, batch_rows=8, seed=0)
    for step in range(4):
        tokens = mixed.batch(step).tokens
        named = ((tokens >= 300) & (tokens < 400)).any(axis=1)
        assert named.sum() == 2


def test_turns_by_hand():
    assert [part.tolist() for part in take_turns([0.5, 0.5], 0, 5)] == [[0, 1, 0, 1, 0], [0, 0, 1, 1, 2]]
    assert [part.tolist() for part in take_turns([0.75, 0.25], 3, 5)] == [[0, 0, 0, 1, 0], [2, 3, 4, 1, 5]]


def test_turns_are_the_same_wherever_one_begins():
    rng = np.random.default_rng(0)
    for sources in (1, 2, 3, 7):
        shares = rng.dirichlet(np.ones(sources)).clip(1e-3)
        shares = (shares / shares.sum()).tolist()
        whole = take_turns(shares, 0, 3000)
        for number, share in enumerate(shares):
            own = np.flatnonzero(whole.sources == number)
            np.testing.assert_array_equal(whole.rows[own], np.arange(len(own)))
            assert abs(len(own) - 3000 * share) < sources
        for first in (0, 1, 17, 2500):
            part = take_turns(shares, first, 40)
            np.testing.assert_array_equal(part.sources, whole.sources[first : first + 40])
            np.testing.assert_array_equal(part.rows, whole.rows[first : first + 40])


def test_ragged_arange():
    assert ragged_arange(np.array([5, 0, 9]), np.array([3, 0, 2])).tolist() == [5, 6, 7, 9, 10]


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="batch of 8 rows does not divide among 3 workers"):
        loader(many(5, 100), world=3)
    with pytest.raises(ValueError, match="9 rows exceeds batch_rows=8"):
        loader(many(5, 100)).batch(0, rows=9)
    with pytest.raises(ValueError, match="1 shards cannot be mixed by shares"):
        PackedLoader([many(5, 100)], [0.0], seq_len=4, batch_rows=2, seed=0)
