"""The pages of each row: counted on the host, and read from a table on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from fathom.config import ModelConfig
from fathom.infer.fp8 import require_fp8
from fathom.infer.pages import NOBODY, Pool
from fathom.infer.prefixes import links, root
from fathom.kernels.latents import latent_bytes
from fathom.model import PagedCache, PagedSlots, Transformer
from fathom.model.cache import cached_layers


@dataclass
class Holding:
    """The pages that hold one text, in its order."""

    pages: list[int]
    version: int  # of the weights that began to read it
    full: int  # pages at the start that are published, or whose like is
    tip: bytes  # the digest behind those


class Tables:
    """A cache of pages, their pool, and the holding of every active row.

    Rows share the full pages of a common prompt and write behind them; what they would write into is theirs alone.
    Drafts write to `ahead` places behind a row's newest token too, and what they have cached of a token depends on the
    `lookahead` tokens behind it. The last `least` tokens of a text are read whatever is found, in one pass: who goes on
    needs the states there of the model and of its modules, and no page holds those.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        pages: int,
        page_size: int,
        ahead: int,
        lookahead: int,
        prefix_cache: bool,
        dtype: torch.dtype,
        device: torch.device,
        fp8: bool = False,
    ) -> None:
        self.cache = PagedCache(config, pages + 1, page_size, dtype, device, fp8)  # one more: NOBODY's
        self.pool = Pool(pages)
        self.page_size, self.ahead, self.lookahead = page_size, ahead, lookahead
        self.least = max(1, lookahead)
        self.prefix_cache, self.device = prefix_cache, device
        self.holdings: list[Holding] = []  # of rows 0 .. count - 1
        self._table = torch.full((rows, self.pages_of(capacity)), NOBODY, dtype=torch.int32, device=device)

    @property
    def columns(self) -> int:
        """Pages that a row can have."""
        return self._table.shape[1]

    def rows(self, count: int) -> Int32[Tensor, "N C"]:
        """The table of the first so many rows, used or not."""
        return self._table[:count]

    @property
    def capacity(self) -> int:
        """Places that a row has at most."""
        return self._table.shape[1] * self.page_size

    def pages_of(self, places: int) -> int:
        """Pages that a text with its newest token at place `places` - 1 needs before the next pass."""
        return -(-(places + self.ahead) // self.page_size)

    def slots(self, first: int, places: Int[Tensor, "N T"], length: int, fresh: bool) -> PagedSlots:
        """Where the tokens of rows from `first` on at `places` are cached; they see the first `length` places."""
        return PagedSlots.at(self.cache, self._table[first : first + len(places)], places, length, fresh)

    def table(self, holdings: Sequence[Holding], columns: int) -> Int32[Tensor, "N C"]:
        """A table of so many columns for texts that are no rows yet."""
        lists = [[*each.pages, *[NOBODY] * (columns - len(each.pages))][:columns] for each in holdings]
        return torch.tensor(lists, dtype=torch.int32, device=self.device)

    def find(self, text: Sequence[int], size: int, version: int, namespace: str, experts: bool = False) -> Holding:
        """The published pages with the first `size` tokens of a text, of which `least` at least are left to read.

        With `experts` those beside which experts are kept.
        """
        found, last, tip = list[int](), None, root(version, namespace, experts)
        if self.prefix_cache:
            reach = self._findable(size)
            found, last = self.pool.find(links(text[:reach], self.page_size, self.lookahead, 0, tip))
        return Holding(found, version, len(found), last or tip)

    def next_page(self, holding: Holding, text: Sequence[int], size: int) -> bytes | None:
        """What names the first full page among the first `size` tokens of a text that is not published yet, if any."""
        end = (holding.full + 1) * self.page_size
        if not self.prefix_cache or end > size:
            return None
        page = links(text[: end + self.lookahead], self.page_size, self.lookahead, holding.full, holding.tip)
        return next((link.digest() for link in page), None)

    def find_more(self, holding: Holding, text: Sequence[int], size: int) -> int:
        """Put pages that were published meanwhile in the places of those that nothing was read into yet; how many.

        As with `find`, `least` of the first `size` tokens are left to read.
        """
        more = links(text[: self._findable(size)], self.page_size, self.lookahead, holding.full, holding.tip)
        found, last = self.pool.find(more)
        span = slice(holding.full, holding.full + len(found))
        self.pool.release(holding.pages[span])
        holding.pages[span] = found
        holding.full, holding.tip = span.stop, last or holding.tip
        return len(found)

    def publish(self, holding: Holding, text: Sequence[int], done: int, version: int) -> None:
        """Let others find the full pages among the first `done` tokens of a text, which are cached.

        Not where weights changed while they were: what is cached then belongs to no version.
        """
        if not self.prefix_cache or holding.version != version:
            return
        full = min(done, len(text) - self.lookahead) // self.page_size
        reach = text[: full * self.page_size + self.lookahead]
        for link in links(reach, self.page_size, self.lookahead, holding.full, holding.tip):
            holding.tip = self.pool.publish(holding.pages[holding.full], link)
            holding.full += 1

    def spare(self, size: int, samples: int) -> int:
        """Pages that `fork` needs besides those of the text."""
        return (samples - 1) * (self.pages_of(size) - self._shared(size))

    def shrink(self, holding: Holding, size: int, samples: int) -> None:
        """Let the pages go that a text does not need for so many samples."""
        kept = self.pages_of(size) + self.spare(size, samples)
        self.pool.release(holding.pages[kept:])
        del holding.pages[kept:]

    def fork(self, holding: Holding, size: int, samples: int) -> list[Holding]:
        """Give each sample of a text that is read a holding: the pages that none of them writes to are shared.

        The holding has `spare` pages behind those of the text, into which the others are copied.
        """
        own, shared, filled = self.pages_of(size), self._shared(size), -(-size // self.page_size)
        spare, holding.pages = holding.pages[own:], holding.pages[:own]
        common, source = holding.pages[:shared], holding.pages[shared:filled]
        forks, target = [holding], list[int]()
        for number in range(samples - 1):
            mine = spare[number * (own - shared) :][: own - shared]
            target += mine[: len(source)]
            self.pool.hold(common)
            forks.append(Holding([*common, *mine], holding.version, holding.full, holding.tip))
        if target:
            source *= samples - 1
            self.cache.copy_pages(*(torch.tensor(pages, device=self.device) for pages in (source, target)))
        return forks

    def enter(self, holdings: Sequence[Holding]) -> None:
        """Append rows with the pages of these holdings."""
        first = len(self.holdings)
        self.holdings += holdings
        self._table[first : len(self.holdings)] = self.table(holdings, self._table.shape[1])

    def missing(self, places: Sequence[int]) -> int:
        """Pages that rows lack whose newest tokens are so many places from the start."""
        return sum(max(0, self.pages_of(n) - len(each.pages)) for n, each in zip(places, self.holdings, strict=True))

    def grow(self, places: Sequence[int]) -> None:
        """Take the pages that are missing; the pool must have them."""
        entries = list[tuple[int, int, int]]()  # row, column, page; one copy to the device for all of them
        for row, (count, holding) in enumerate(zip(places, self.holdings, strict=True)):
            have, need = len(holding.pages), self.pages_of(count)
            if need > have:
                new = self.pool.take(need - have)
                holding.pages += new
                entries += zip([row] * len(new), range(have, need), new, strict=True)
        if entries:
            rows, columns, pages = torch.tensor(entries, device=self.device).unbind(1)
            self._table[rows, columns] = pages.int()

    def release(self, holding: Holding) -> None:
        """Let the pages of a text go."""
        self.pool.release(holding.pages)

    def move(self, source: Int[Tensor, " M"], target: Int[Tensor, " M"], left: int) -> None:
        """Rows `source` have moved to `target`, and only the first `left` are still active."""
        self._table[target] = self._table[source]
        for new, old in zip(target.tolist(), source.tolist(), strict=True):
            self.holdings[new] = self.holdings[old]
        del self.holdings[left:]

    def clear(self) -> None:
        """Let the pages of all rows go."""
        for holding in self.holdings:
            self.release(holding)
        self.holdings.clear()

    def _findable(self, size: int) -> int:
        """How much of a text says what may be found of it."""
        return max(0, size - self.least) // self.page_size * self.page_size + self.lookahead

    def _shared(self, size: int) -> int:
        """Pages of a text that nobody who goes on with it writes to again."""
        return max(0, size - self.lookahead) // self.page_size


def pages_that_fit(
    config: ModelConfig,
    rows: int,
    capacity: int,
    page_size: int,
    dtype: torch.dtype,
    free_bytes: int,
    fp8: bool = False,
) -> int:
    """As many pages as `rows` full rows fill, if these fit into nine tenths of the free memory."""
    a = config.attention
    token_bytes = latent_bytes(a.kv_lora_rank, a.qk_rope_head_dim) if fp8 else a.cache_width * dtype.itemsize
    page_bytes = page_size * token_bytes * cached_layers(config)
    return max(1, min(rows * -(-capacity // page_size), free_bytes * 9 // 10 // page_bytes))


def lay_tables(
    model: Transformer,
    rows: int,
    capacity: int,
    ahead: int,
    pages: int | None,
    page_size: int,
    prefix_cache: bool,
    fp8: bool = False,
) -> Tables | None:
    """Tables as `Engine` describes them; None where rows are to lie in stretches."""
    config, weight = model.config, model.embedding.weight
    if pages is not None and pages < 0:
        raise ValueError(f"pages={pages} is negative; give the number of pages, or 0 for rows without pages")
    if fp8:
        require_fp8(model, pages=bool(pages) or (pages is None and weight.is_cuda))
    lookahead = min(ahead, len(model.mtp))  # entries of MTP module d are made with the token d + 1 places on
    if pages is None and weight.is_cuda:
        free_bytes, _ = torch.cuda.mem_get_info(weight.device)
        pages = pages_that_fit(config, rows, capacity + ahead, page_size, weight.dtype, free_bytes, fp8)
    if not pages:
        return None
    return Tables(
        config, rows, capacity, pages, page_size, ahead, lookahead, prefix_cache, weight.dtype, weight.device, fp8
    )
