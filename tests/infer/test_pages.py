import random
from collections.abc import Callable

import pytest
import torch

from fathom.config import AttentionConfig, ModelConfig
from fathom.infer.pages import Pool
from fathom.infer.prefixes import links, root
from fathom.infer.tables import Holding, Tables, pages_that_fit

SIZE = 4


def chain(text: list[int], version: int = 0, namespace: str = "", ahead: int = 0) -> list[bytes]:
    return [link.digest() for link in links(text, SIZE, ahead, 0, root(version, namespace))]


def test_pages_have_the_same_name_where_all_up_to_their_end_is_the_same() -> None:
    rng = random.Random(0)
    texts = [[rng.randrange(2) for _ in range(rng.randint(0, 14))] for _ in range(300)]
    for ahead in (0, 1, 2):
        named = {
            (version, space, tuple(text[: (page + 1) * SIZE + ahead]), digest)
            for version in (0, 1)
            for space in ("", "b")
            for text in texts
            for page, digest in enumerate(chain(text, version, space, ahead))
        }
        assert len({entry[:3] for entry in named}) == len({entry[3] for entry in named}) == len(named)
        assert {len(start) for _, _, start, _ in named} == {n + ahead for n in (4, 8, 12) if n + ahead <= 14}


def test_a_chain_goes_on_from_any_page() -> None:
    text = list(range(19))
    whole = list(links(text, SIZE, 1, 0, root(3, "x")))
    assert [len(link.content) for link in whole] == [20] * 4
    assert list(links(text, SIZE, 1, 2, whole[1].digest())) == whole[2:]


class Simple:
    """The pool's laws in the plainest form: all contents in one list, searched from the front."""

    def __init__(self, pages: int) -> None:
        self.pages, self.clock = pages, 0
        self.held: dict[int, int] = {}
        self.content: dict[int, bytes] = {}
        self.let_go: dict[int, int] = {}  # when

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def take(self, pages: list[int]) -> None:
        for page in pages:
            assert not self.held.get(page)
            if page in self.content:  # only when nothing unnamed is left, and then the longest unused
                kept = [other for other in self.content if not self.held.get(other)]
                assert self.pages - sum(map(bool, self.held.values())) == len(kept)
                assert page == min(kept, key=self.let_go.__getitem__)
                del self.content[page]
            self.held[page] = 1

    def release(self, pages: list[int]) -> None:
        for page in reversed(pages):
            self.held[page] -= 1
            self.let_go[page] = self.tick()

    def find(self, digests: list[bytes]) -> list[int]:
        found: list[int] = []
        for digest in digests:
            page = next((page for page, content in self.content.items() if content == digest), None)
            if page is None:
                break
            found.append(page)
            self.held[page] = self.held.get(page, 0) + 1
        return found


def test_the_pool_keeps_the_laws_of_a_simple_model_over_random_operations() -> None:
    rng, pool, simple = random.Random(1), Pool(12), Simple(12)
    texts: list[tuple[list[int], list[int]]] = []  # in flight: a text and its pages
    found_any = evicted = 0
    for _ in range(6000):
        if rng.random() < 0.5:
            text = [rng.randrange(2) for _ in range(rng.randint(1, 5) * SIZE)]
            chained = list(links(text, SIZE, 0, 0, root(0, "")))
            pages, last = pool.find(chained)
            assert pages == simple.find([link.digest() for link in chained])
            assert last == (chained[len(pages) - 1].digest() if pages else None)
            found_any += bool(pages)
            if len(text) // SIZE - len(pages) > pool.available:
                pool.release(pages)
                simple.release(pages)
                continue
            before = len(simple.content)
            new = pool.take(len(text) // SIZE - len(pages))
            simple.take(new)
            evicted += before - len(simple.content)
            texts.append((text, [*pages, *new]))
            if rng.random() < 0.7:
                for link, page in zip(chained, texts[-1][1], strict=True):
                    digest = pool.publish(page, link)
                    assert digest == link.digest()
                    if digest not in simple.content.values():
                        simple.content[page] = digest
        elif texts:
            _, pages = texts.pop(rng.randrange(len(texts)))
            pool.release(pages)
            simple.release(pages)
        held = [page for page, count in simple.held.items() if count]
        assert (pool.used, pool.available) == (len(held), 12 - len(held))
        pool.check(pages for _, pages in texts)
    assert found_any > 500 and evicted > 500


def forget(pool: Pool) -> None:
    pool._free.pop()


def count_twice(pool: Pool) -> None:
    pool._holders[2] += 1


def free_twice(pool: Pool) -> None:
    pool._free.append(1)


def rename(pool: Pool) -> None:
    digest, link = pool._link[1]
    pool._link[1] = digest, link._replace(content=bytes(len(link.content)))


def lose_a_name(pool: Pool) -> None:
    pool._page.popitem()


def mix_up(pool: Pool) -> None:
    (one, first), (two, second) = pool._page.items()
    pool._page[one], pool._page[two] = second, first


def free_a_named_page(pool: Pool) -> None:
    pool._kept.pop(3)
    pool._free.append(3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (forget, r"page \d is held 0 times and 0 times free or kept"),
        (count_twice, "page 2 is counted 2 times, but held 1 times"),
        (free_twice, "page 1 is held 1 times and 1 times free or kept"),
        (rename, "page 1 is not found by the hash"),
        (lose_a_name, "1 names lead to 2 published pages"),
        (mix_up, "page [13] is not found by the hash"),
        (free_a_named_page, "are not the kept ones"),
    ],
)
def test_the_check_finds_faults(fault: Callable[[Pool], None], message: str) -> None:
    pool = Pool(6)
    mine, others = pool.take(2), pool.take(1)
    first, *_ = links([1, 2, 3, 4], SIZE, 0, 0, root(0, ""))
    other, *_ = links([5, 6, 7, 8], SIZE, 0, 0, root(0, ""))
    pool.publish(mine[0], first)
    pool.publish(others[0], other)
    pool.release(others)
    pool.check([mine])
    fault(pool)
    with pytest.raises(RuntimeError, match=message):
        pool.check([mine])


def test_the_check_sees_a_holding_that_nobody_counts() -> None:
    pool = Pool(3)
    pages = pool.take(2)
    with pytest.raises(RuntimeError, match=f"page {min(pages)} is counted 1 times, but held 0 times"):
        pool.check([])
    with pytest.raises(RuntimeError, match="counted 0 times, but held 1 times"):
        pool.check([pages, [3]])


CONFIG = ModelConfig(vocab_size=32, hidden_size=24, num_hidden_layers=2, intermediate_size=32)


def tables(pages: int = 20, ahead: int = 0) -> Tables:
    return Tables(CONFIG, 8, 40, pages, SIZE, ahead, ahead, True, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 9])
def test_samples_share_what_none_of_them_writes_to(size: int, ahead: int) -> None:
    laid = tables(ahead=ahead)
    for layer in laid.cache.layers:
        layer.copy_(torch.randn(layer.shape, generator=torch.Generator().manual_seed(0)))
    holding = laid.find(list(range(size)), size, 0, "")
    holding.pages += laid.pool.take(laid.pages_of(size) + laid.spare(size, 3))
    forks = laid.fork(holding, size, 3)
    laid.pool.check(each.pages for each in forks)
    written = size - ahead  # the first place that a sample writes to: drafts go back to the prompt's last
    for place in range(size):
        pages = [each.pages[place // SIZE] for each in forks]
        assert len(set(pages)) == (1 if place // SIZE < written // SIZE else 3)
        for layer in laid.cache.layers:
            assert all(torch.equal(layer[page, place % SIZE], layer[pages[0], place % SIZE]) for page in pages)
    assert {len(each.pages) * SIZE >= size + ahead for each in forks} == {True}


def test_what_changed_weights_wrote_is_not_found() -> None:
    laid, text = tables(), list(range(9))
    holding = Holding(laid.pool.take(3), 0, 0, root(0, ""))
    laid.publish(holding, text, 8, version=1)
    laid.publish(holding, text, 8, version=0)
    laid.release(holding)
    assert len(laid.find(text, 9, 1, "").pages) == len(laid.find(text, 9, 0, "x").pages) == 0
    assert len(laid.find(text, 9, 0, "").pages) == 2
    assert len(laid.find(text[:8], 8, 0, "").pages) == 1  # one token is left to read


def test_pages_fit_nine_tenths_of_memory_and_no_more_than_rows_fill() -> None:
    v3 = AttentionConfig(
        num_attention_heads=128,
        num_key_value_heads=128,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )
    config = ModelConfig(num_hidden_layers=61, num_nextn_predict_layers=0, attention=v3)
    page_bytes = 64 * 70_272
    assert pages_that_fit(config, 8, 4096, 64, torch.bfloat16, 1 << 40) == 8 * 64
    assert pages_that_fit(config, 8, 4097, 64, torch.bfloat16, 1 << 40) == 8 * 65
    assert pages_that_fit(config, 256, 4096, 64, torch.bfloat16, 100 * page_bytes) == 90
