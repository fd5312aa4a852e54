"""Attention over pages: the definition against a loop over tokens, the Triton twin against the definition."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.kernels import attention
from fathom.kernels.attention import latent_attention, paged_latent_attention
from fathom.kernels.latents import dequantize_latents, quantize_latents

GPU = torch.cuda.is_available()


class Case:
    """Random queries over pages in random order; whatever no query sees is NaN or points nowhere."""

    def __init__(
        self,
        lengths: list[int],
        time: int,
        heads: int,
        rank: int,
        rope: int,
        page: int,
        columns: int | None = None,
        dtype: torch.dtype = torch.float32,
        packed: bool = False,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        ends = [length + time - 1 if length else 0 for length in lengths]
        columns = columns or max(1, -(-max(ends) // page)) + 1
        table = torch.randperm(len(lengths) * columns + 2, generator=generator)[: len(lengths) * columns]
        table = table.view(len(lengths), columns)
        latents = torch.randn(len(lengths) * columns + 2, page, rank + rope, generator=generator).to(dtype)
        self.rows = [latents[pages].flatten(0, 1)[:end] for pages, end in zip(table, ends, strict=True)]
        unseen = torch.ones(latents.shape[:2], dtype=torch.bool)
        for pages, end in zip(table, ends, strict=True):
            for number, first in enumerate(range(0, end, page)):
                unseen[pages[number], : end - first] = False
            pages[-(-end // page) :] = 10**8
        pages = quantize_latents(latents, rank) if packed else latents
        pages[unseen] = 255 if packed else math.nan
        self.q = torch.randn(len(lengths), time, heads, rank + rope, generator=generator).to(dtype)
        self.lengths, self.rank, self.scale = lengths, rank, 1.3 / math.sqrt(rank + rope)
        self.args = (self.q, pages, table.int(), torch.tensor(lengths, dtype=torch.int32))

    def run(self, function: Callable[..., Tensor], device: str = "cpu", **settings: Any) -> Tensor:
        return function(*(x.to(device) for x in self.args), self.rank, self.scale, **settings).cpu()

    def loop(self) -> Tensor:
        """One row and query after the other, in float64."""
        out = torch.zeros(*self.q.shape[:3], self.rank, dtype=torch.float64)
        for b, length in enumerate(self.lengths):
            for t in range(self.q.shape[1] if length else 0):
                keys = self.rows[b][: length + t].double()
                weights = (self.q[b, t].double() @ keys.T * self.scale).exp()  # (H, tokens)
                out[b, t] = weights / weights.sum(1, keepdim=True) @ keys[:, : self.rank]
        return out


CASES = {
    "one token": ([5, 0, 33, 64], 1, 3, 32, 16, 16),
    "drafts": ([1, 30, 0, 15, 16, 17], 4, 5, 24, 8, 16),
    "wide": ([70, 129], 2, 2, 256, 64, 64),
    "more queries than a block": ([40, 9], 3, 16, 32, 16, 32),
    "nothing": ([0, 0], 2, 2, 16, 16, 16),
}


@pytest.mark.parametrize("name", CASES)
def test_definition_is_a_loop_over_tokens(name: str) -> None:
    case = Case(*CASES[name])
    torch.testing.assert_close(case.run(paged_latent_attention).double(), case.loop(), rtol=1e-4, atol=1e-5)


def test_pages_make_no_difference() -> None:
    case = Case([20, 20], 1, 4, 16, 8, 16)
    latents = torch.stack(case.rows)
    plain = latent_attention(case.q, latents, 16, case.scale, torch.zeros(2, 1, 20))
    torch.testing.assert_close(case.run(paged_latent_attention), plain)


def test_packed_pages_are_the_vectors_they_stand_for() -> None:
    settings = ([50, 0, 7], 2, 3, 64, 16, 16)
    packed, plain = Case(*settings, packed=True), Case(*settings)
    stood_for = [dequantize_latents(quantize_latents(row, 64), 64, 16) for row in plain.rows]
    plain.rows = stood_for
    found = packed.run(paged_latent_attention)
    torch.testing.assert_close(found.double(), plain.loop(), rtol=1e-4, atol=1e-5)
    exact = Case(*settings).loop()
    error = (found - exact).norm() / exact.norm()
    assert 0.005 < error < 0.05  # of the outputs, from four significant bits in the latents


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rank=24), "rank=24 leaves no rotated key in a width of 24"),
        (dict(pages=torch.zeros(4, 16, 20)), "pages hold 20 x torch.float32 a token"),
        (dict(pages=torch.zeros(4, 16, 24, dtype=torch.uint8)), "or 48 x torch.uint8"),
        (dict(length=torch.ones(2, dtype=torch.int64)), "both int32"),
        (dict(table=torch.zeros(3, 1, dtype=torch.int32)), "a table of 2 rows"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    q, pages, table, length = Case([3, 4], 1, 2, 16, 8, 16).args
    given = dict(q=q, pages=pages, table=table, length=length, rank=16) | change
    with pytest.raises(ValueError, match=message):
        attention.check_pages(**given)


# ---- the twin ------------------------------------------------------------------------------------------------------


@pytest.fixture
def twin(triton_kernels: None) -> Any:
    """The module of the twin."""
    from fathom.kernels.triton import attention as module

    return module


def any_shape(twin: Any) -> Callable[..., Tensor]:
    """The kernel for any shape and type, with the definition's scale."""
    return lambda *args, **settings: twin.attention_of_any(*args[:-1], args[-1] * twin.LOG2E, **settings)


@pytest.mark.filterwarnings("ignore:divide by zero")  # NumPy on log2(0), which is then not chosen
@pytest.mark.parametrize("splits", [None, 1, 3])
@pytest.mark.parametrize("name", CASES)
def test_twin_is_the_definition(twin: Any, name: str, splits: int | None) -> None:
    case = Case(*CASES[name])
    found = case.run(any_shape(twin), "cuda" if GPU else "cpu", splits=splits)
    torch.testing.assert_close(found, case.run(paged_latent_attention), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("programs", "blocks", "queries", "splits"),
    [(64, 64, 1024, 2), (1, 64, 16, 64), (1, 512, 16, 128), (1, 1, 16, 1), (64, 4, 1024, 1), (128, 64, 2048, 1)],
)
def test_splits_fill_the_gpu_where_the_join_is_worth_it(
    twin: Any, programs: int, blocks: int, queries: int, splits: int
) -> None:
    """Two parts a row for 64 rows of 132 programs at once, one for 128; all tiles at once for a single row."""
    assert twin.choose_splits(programs, blocks, slots=132, start=2.0, queries=queries) == splits


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


LENGTHS = [0, 1, 63, 64, 65, 700, 300]
FEW = [(1, 16, 512, 64, 64), (2, 16, 512, 64, 64), (2, 3, 256, 64, 128), (3, 20, 256, 32, 64), (1, 5, 128, 16, 64)]
MANY = [(1, 128, 512, 64, 64), (2, 50, 256, 64, 128), (4, 16, 512, 64, 64), (1, 70, 128, 32, 64)]
ANY = [(1, 16, 512, 64, 16), (2, 30, 48, 16, 32), (1, 8, 32, 16, 16), (4, 16, 256, 64, 32)]


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [None, 1, 3])
@pytest.mark.parametrize("shape", [*FEW, *MANY, *ANY])
def test_bfloat16_is_the_loop_but_for_rounding(shape: tuple[int, ...], splits: int | None) -> None:
    from fathom.kernels.triton import attention as twin
    from fathom.kernels.triton.attention_few import attention_of_few
    from fathom.kernels.triton.attention_many import attention_of_many

    kernel = attention_of_few if shape in FEW else attention_of_many if shape in MANY else twin.attention_of_any
    case = Case(LENGTHS, *shape, columns=14 * 64 // shape[4], dtype=torch.bfloat16)
    run = lambda *args: kernel(*args[:-1], args[-1] * twin.LOG2E, splits=splits)  # noqa: E731
    found = case.run(run, "cuda")
    assert distance(found, case.loop()) < 4e-3
    assert torch.equal(found[0], torch.zeros_like(found[0]))
    assert torch.equal(found, case.run(run, "cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape",
    [(1, 16, 512, 64, 64), (2, 16, 512, 64, 128), (4, 10, 256, 64, 64), (1, 7, 128, 16, 64), (1, 80, 32, 16, 32)],
)
def test_packed_pages_on_a_gpu_are_the_vectors_they_stand_for(shape: tuple[int, ...]) -> None:
    rank, rope = shape[2:4]
    case = Case(LENGTHS, *shape, dtype=torch.bfloat16, packed=True)
    found = case.run(paged_latent_attention, "cuda")
    exact = Case(LENGTHS, *shape, dtype=torch.bfloat16).loop()
    case.rows = [dequantize_latents(quantize_latents(row, rank), rank, rope) for row in case.rows]
    assert distance(found, case.loop()) < 4e-3
    assert 4e-3 < distance(found, exact) < 5e-2


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 16, 512, 64, 64), (3, 5, 40, 12, 16)])
def test_float32_reads_packed_pages_as_they_are(shape: tuple[int, ...]) -> None:
    case = Case(LENGTHS, *shape, packed=True)
    rank, rope = shape[2:4]
    case.rows = [dequantize_latents(quantize_latents(row, rank), rank, rope) for row in case.rows]
    assert distance(case.run(paged_latent_attention, "cuda"), case.loop()) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize(("time", "heads"), [(1, 16), (4, 32)])
def test_a_graph_follows_lengths_and_tables(time: int, heads: int) -> None:
    """Captured once, replayed on other tokens: nothing of them was read on the host."""
    shape = (time, heads, 256, 64, 64)
    first = Case([0, 5, 100, 500], *shape, columns=9, dtype=torch.bfloat16)
    second = Case([333, 0, 64, 1], *shape, columns=9, dtype=torch.bfloat16, seed=1)
    args = [x.cuda() for x in first.args]
    paged_latent_attention(*args, 256, first.scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = paged_latent_attention(*args, 256, first.scale)
    for case in (first, second):
        for held, new in zip(args, case.args, strict=True):
            held.copy_(new)
        graph.replay()
        assert distance(out.cpu(), case.loop()) < 4e-3
