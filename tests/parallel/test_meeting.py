"""Processes that meet in a store where the dead have left their words."""

from concurrent.futures import ThreadPoolExecutor

from torch.distributed import HashStore

from fathom.parallel.meeting import find_each_other


def test_the_living_find_each_other_among_the_words_of_the_dead() -> None:
    store = HashStore()
    for rank in (1, 2, 3):  # an attempt that was killed half way
        store.set(f"hello/{rank}", f"dead{rank}")
        store.set(f"welcome/{rank}", f"dead{rank} dead0")
    store.add("dead0/here", 2)
    for _ in range(3):
        with ThreadPoolExecutor(4) as crew:
            found = list(crew.map(lambda rank: find_each_other(store, rank, 4), (3, 0, 2, 1)))
        found[0].set("address", "of rank 3")
        assert {each.get("address") for each in found} == {b"of rank 3"}
        assert all(each.add("visits", 1) == visit for visit, each in enumerate(found, start=1))  # nobody was here
