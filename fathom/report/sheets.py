"""Any part of a plan as tables: named amounts in pairs, and records in a grid with a column for every field."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.report.amounts import amount, name


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Named amounts under a heading."""

    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Records under a heading; the first column names them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Sheets:
    """The tables of one part."""

    pairs: Sequence[Pairs] = ()
    grids: Sequence[Grid] = ()


def sheets(key: str, title: str, part: Any, nested: bool = False) -> Sheets:
    """The part's own amounts first, then a table for every group and for every list of records in it.

    With `nested` the tables of groups carry the part's title too, as they will stand beside those of other parts.
    """
    if not part:
        return Sheets()
    if is_records(part):
        return Sheets(grids=[grid(title, part)])
    if not isinstance(part, Mapping):
        return Sheets(pairs=[Pairs(title=title, rows=[(title, amount(key, part))])])
    groups = {member: value for member, value in part.items() if isinstance(value, Mapping) and value}
    records = {member: value for member, value in part.items() if is_records(value)}
    loose = {member: value for member, value in part.items() if member not in groups.keys() | records.keys()}
    pairs = [Pairs(title=title, rows=list(_rows(loose, key)))] if loose else []
    pairs += [
        Pairs(title=f"{title}: {member}" if nested else name(member), rows=list(_rows(value, f"{key} {member}")))
        for member, value in groups.items()
    ]
    return Sheets(pairs=pairs, grids=[grid(name(member), value) for member, value in records.items()])


def is_records(value: Any) -> bool:
    """Whether this is a list of records."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, Mapping) for row in value)


def grid(title: str, records: Iterable[Mapping[str, Any]]) -> Grid:
    """A column for every field that any record has; groups within a record become columns of their own."""
    flat = [dict(_flatten(record)) for record in records]
    fields = list(dict.fromkeys(field for record in flat for field in record))
    return Grid(
        title=title,
        columns=[name(field) for field in fields],
        rows=[[amount(field, record.get(field)) for field in fields] for record in flat],
    )


def _rows(values: Mapping[str, Any], key: str) -> Iterator[tuple[str, str]]:
    """Every amount with its name, in the unit that its own name or the part's tells."""
    for member, value in values.items():
        if isinstance(value, Mapping):
            for label, text in _rows(value, f"{key} {member}"):
                yield f"{name(member)}: {label}", text
        else:
            yield name(member), amount(f"{key} {member}", value)


def _flatten(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for field, value in record.items():
        if isinstance(value, Mapping):
            yield from _flatten(value)
        else:
            yield field, value
