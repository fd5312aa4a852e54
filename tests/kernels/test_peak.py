"""The place of the largest entry, against torch's own search."""

import pytest
import torch

from fathom.kernels.peak import peak


@pytest.mark.parametrize("width", [64, 128, 1536, 100, 1])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_value_and_first_place(rows: int, width: int) -> None:
    x = torch.randint(0, 9, (rows, width), generator=torch.Generator().manual_seed(width)).float()  # many equals
    value, place = peak(x)
    wanted = torch.tensor([row.tolist().index(max(row.tolist())) for row in x], dtype=torch.int64)
    assert torch.equal(place, wanted)
    assert torch.equal(value, x.amax(-1) if rows else value)


def test_minus_infinity_is_no_obstacle() -> None:
    x = torch.full((2, 128), float("-inf"))
    x[0, 77] = -1e30
    assert peak(x)[1].tolist() == [77, 0]
