"""Which pages are held, by how many, and which can be found again by what they hold."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice

from fathom.infer.prefixes import Link

NOBODY = 0  # the page that is nobody's: tables point there where a row has none, and stray writes go there
REHASHED = 64  # pages whose hashes one check computes again


class Pool:
    """The numbers of pages 1 .. pages. Each is free, held by so many, or kept.

    A kept page is held by nobody but published: whoever brings the same tokens finds it again. When free pages run
    out, the kept one that was let go longest ago is taken. Only full pages are published, and who finds one writes
    behind it: nothing shared is ever written.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._free = list(range(pages, NOBODY, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._holders = [0] * (pages + 1)
        self._page: dict[bytes, int] = {}  # by digest
        self._link: dict[int, tuple[bytes, Link]] = {}  # of published pages: digest, and what it was made of
        self._next_check = 0

    @property
    def available(self) -> int:
        """Pages that nobody holds."""
        return len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return self.pages - self.available

    def take(self, count: int) -> list[int]:
        """Hold `count` pages that nobody holds; there must be as many."""
        assert count <= self.available
        taken = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def hold(self, pages: Iterable[int]) -> None:
        """Hold pages once more."""
        for page in pages:
            if not self._holders[page]:
                del self._kept[page]
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Let the pages of one holder go, in the order of the text: the last will be the first to be taken anew."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._link:
                self._kept[page] = None
            else:
                self._free.append(page)

    def publish(self, page: int, link: Link) -> bytes:
        """Let others find a full page by its link, unless they find another one so; returns the link's digest."""
        digest = link.digest()
        if digest not in self._page and page not in self._link:
            self._page[digest], self._link[page] = page, (digest, link)
        return digest

    def find(self, chain: Iterable[Link]) -> tuple[list[int], bytes | None]:
        """The published pages of a chain up to the first that is missing, held now, and the digest of the last."""
        found, last = list[int](), None
        for link in chain:
            digest = link.digest()
            if digest not in self._page:
                break
            found.append(self._page[digest])
            last = digest
        self.hold(found)
        return found, last

    def check(self, holdings: Iterable[Sequence[int]]) -> None:
        """Raise RuntimeError unless counts, lists and hashes agree with what is held.

        Every call looks at all counts, and at the hashes of some pages: those behind the ones of the last call.
        """
        held = Counter(page for pages in holdings for page in pages)
        for page in range(NOBODY, self.pages + 1):
            if self._holders[page] != held[page]:
                raise RuntimeError(f"page {page} is counted {self._holders[page]} times, but held {held[page]} times")
        idle = Counter((*self._free, *self._kept))
        for page in range(NOBODY + 1, self.pages + 1):
            if idle[page] != (held[page] == 0):
                raise RuntimeError(f"page {page} is held {held[page]} times and {idle[page]} times free or kept")
        if any(page not in self._link for page in self._kept) or any(page in self._link for page in self._free):
            raise RuntimeError("the published pages that nobody holds are not the kept ones")
        self._check_index()

    def _check_index(self) -> None:
        if len(self._page) != len(self._link):
            raise RuntimeError(f"{len(self._page)} names lead to {len(self._link)} published pages")
        start = self._next_check if self._next_check < len(self._link) else 0
        for page, (digest, link) in islice(self._link.items(), start, start + REHASHED):
            if link.digest() != digest or self._page.get(digest) != page:
                raise RuntimeError(f"page {page} is not found by the hash of what it holds")
        self._next_check = start + REHASHED

    def _evict(self) -> int:
        page, _ = self._kept.popitem(last=False)
        digest, _ = self._link.pop(page)
        del self._page[digest]
        return page
