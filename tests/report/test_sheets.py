"""Any part of a plan becomes tables that hold every amount."""

from fathom.report.sheets import Grid, Pairs, grid, sheets
from fathom.report.units import MISSING, SPACE


def test_groups_get_tables_of_their_own() -> None:
    part = {"kind": "mla", "elements": 35_136, "bytes": {"BF16": 70_272}, "sizes": [{"rows": 1}, {"rows": 8}], "no": {}}
    found = sheets("cache", "Cache", part)
    assert found.pairs == [
        Pairs(title="Cache", rows=[("Kind", "MLA"), ("Elements", "35,136")]),
        Pairs(title="Bytes", rows=[("BF16", f"70,272{SPACE}B")]),
    ]
    assert found.grids == [Grid(title="Sizes", columns=["Rows"], rows=[["1"], ["8"]])]


def test_groups_beside_those_of_other_parts_carry_both_titles() -> None:
    assert [table.title for table in sheets("cache", "Cache", {"bytes": {"x": 1}}, nested=True).pairs] == [
        "Cache: bytes"
    ]


def test_a_deeper_group_is_one_table_with_longer_names() -> None:
    table = sheets("a", "A", {"b": {"c": {"mfu": 0.5}}}).pairs[0]
    assert table == Pairs(title="B", rows=[("C: MFU", f"50.0{SPACE}%")])


def test_records_with_unequal_fields_leave_gaps() -> None:
    table = grid("T", [{"layout": {"data": 2}, "mfu": 0.3}, {"hours": 2.0}])
    assert table.columns == ["Data", "MFU", "Hours"]
    assert table.rows == [["2", f"30.0{SPACE}%", MISSING], [MISSING, MISSING, f"2{SPACE}h"]]


def test_a_single_value_and_nothing() -> None:
    assert sheets("tokens_per_s", "Speed", 1234.0).pairs == [Pairs(title="Speed", rows=[("Speed", "1,234")])]
    assert sheets("x", "X", {}).pairs == sheets("x", "X", None).grids == ()
