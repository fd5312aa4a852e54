"""Names for what a full page holds: a hash chained over everything before it."""

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

DIGEST_BYTES = 16
ID_BYTES = 4  # of a token id


class Link(NamedTuple):
    """A full page: the digest of all that stands before it, and its own token ids."""

    parent: bytes
    content: bytes

    def digest(self) -> bytes:
        """What names this page and all before it."""
        return blake2b(self.parent + self.content, digest_size=DIGEST_BYTES).digest()


def root(version: int, namespace: str, experts: bool = False) -> bytes:
    """The parent of first pages: pages of other weights, or of another namespace, never have the same names.

    Nor have those beside which experts are kept, and those without.
    """
    kept = "+experts" if experts else ""
    return blake2b(f"{version}{kept}/{namespace}".encode(), digest_size=DIGEST_BYTES).digest()


def links(text: Sequence[int], page_size: int, ahead: int, first: int, parent: bytes) -> Iterator[Link]:
    """Links of the full pages of `text` from page `first` on, whose parent has the digest `parent`.

    What is cached of a token may depend on the `ahead` tokens behind it: an MTP module's entry at a place is made with
    the token of the next (V3 eq. 21). A page's content reaches so much further, and the last pages may have to wait.
    """
    raw = array("I", text[first * page_size :]).tobytes()
    width = ID_BYTES * page_size
    reach = width + ID_BYTES * ahead
    for start in range(0, len(raw) - reach + 1, width):
        link = Link(parent, raw[start : start + reach])
        yield link
        parent = link.digest()
