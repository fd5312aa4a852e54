import numpy as np
import pytest

from fathom.text.packing import Batch
from fathom.text.padding import POOL, DialogueLoader, pad_dialogues


def dialogues(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Dialogue n has a prompt [1, 1000 + n, 4] and a reply of 2 to 12 tokens that ends in 2."""
    return [(np.array([1, 1000 + n, 4]), np.array([*range(50, 51 + n * 7 % 11), 2])) for n in range(count)]


def loader(count: int = 500, **changes: int) -> DialogueLoader:
    settings = {"pad_id": 0, "seq_len": 16, "batch_rows": 8, "seed": 1, **changes}
    return DialogueLoader(dialogues(count), **settings)


def names(batch: Batch) -> list[int]:
    return (batch.tokens[:, 1] - 1000).tolist()


def test_a_hand_padded_example():
    batch = pad_dialogues([(np.array([1, 4]), np.array([7, 2])), (np.array([1, 5, 4]), np.array([8, 9, 2]))], pad_id=0)
    assert batch.tokens.tolist() == [[1, 4, 7, 2, 0], [1, 5, 4, 8, 9]]
    assert batch.targets.tolist() == [[4, 7, 2, 0, 0], [5, 4, 8, 9, 2]]
    assert batch.weights.tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert batch.segments.tolist() == [[0, 0, 0, 0, -1], [0, 0, 0, 0, 0]]
    assert (batch.tokens.dtype, batch.weights.dtype) == (np.int64, np.float32)


def test_padding_is_told_by_length_not_by_its_id():
    batch = pad_dialogues([(np.array([1, 4]), np.array([2, 7, 2])), (np.array([1]), np.array([2]))], pad_id=2)
    assert batch.weights.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0]]


def test_rows_of_a_batch_are_of_like_length():
    used = loader()
    waste = [(used.batch(step).targets == 0).mean() for step in range(2 * POOL)]
    assert np.mean(waste) < 0.05
    shapes = [used.batch(step).tokens.shape for step in range(POOL)]
    widths = [width for _, width in shapes]
    assert widths != sorted(widths)
    assert min(widths) < 8
    assert max(widths) == 14


def test_every_dialogue_comes_once_an_epoch():
    used = loader(count=POOL * 8)
    for epoch in range(2):
        seen = [name for step in range(epoch * POOL, (epoch + 1) * POOL) for name in names(used.batch(step))]
        assert sorted(seen) == list(range(POOL * 8))
    assert names(used.batch(0)) != names(used.batch(POOL))


def test_fewer_dialogues_than_a_batch_repeat():
    seen = [name for step in range(POOL) for name in names(loader(count=3).batch(step))]
    assert [seen.count(name) for name in range(3)] == pytest.approx([POOL * 8 / 3] * 3, abs=1)


def test_ranks_together_have_the_batch_of_one():
    for step in (0, 7, POOL + 3):
        parts = [loader(rank=rank, world=4).batch(step) for rank in range(4)]
        whole = loader().batch(step)
        for field in ("tokens", "targets", "weights", "positions", "segments"):
            joined = np.concatenate([getattr(part, field) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole, field))


def test_a_batch_depends_on_its_step_alone():
    used = loader()
    for step in (0, POOL + 1, 5):
        used.batch(step)
    np.testing.assert_array_equal(used.batch(40).tokens, loader().batch(40).tokens)
    assert names(loader(seed=2).batch(40)) != names(used.batch(40))


def test_a_growing_batch_takes_the_first_rows_of_its_step():
    assert names(loader().batch(3, rows=4)) == names(loader().batch(3))[:4]


def test_bad_input_is_refused():
    with pytest.raises(
        ValueError, match=r"dialogue 3 has 15 tokens, which seq_len=12 cannot hold; raise seq_len to 14"
    ):
        loader(seq_len=12)
    with pytest.raises(ValueError, match="no dialogues to train on"):
        DialogueLoader([], pad_id=0, seq_len=8, batch_rows=2, seed=0)
    with pytest.raises(ValueError, match="does not divide among 3 workers"):
        loader(world=3)
