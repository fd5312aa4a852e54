"""Grouped-query attention over pages: the definition against torch's attention, the twin against the definition."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels import attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
definition: Any = attention.paged_grouped_attention.__wrapped__
HEADS, GROUPS, SIZE, PAGE = 6, 2, 12, 4


def inputs(time: int, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, pages, table and lengths; pages that no row uses hold NaN, and so do places behind a row's last."""
    generator = torch.Generator().manual_seed(time + sum(lengths))
    columns = 1 + (max(lengths) + time) // PAGE
    table = 1 + torch.randperm(len(lengths) * columns, generator=generator).view(len(lengths), -1)
    pages = torch.full((1 + table.numel(), PAGE, 2 * GROUPS * SIZE), float("nan"))
    for row, length in zip(table, lengths, strict=True):
        for place in range(length + time - 1 if length else 0):
            pages[row[place // PAGE], place % PAGE] = torch.randn(pages.shape[2], generator=generator)
    q = torch.randn(len(lengths), time, HEADS, SIZE, generator=generator)
    found = q, pages, table.int(), torch.tensor(lengths, dtype=torch.int32)
    q, pages, table, length = (each.to(DEVICE) for each in found)
    return q, pages, table, length


@pytest.mark.parametrize("time", [1, 3])
def test_the_definition_is_attention_over_the_tokens_of_each_row(time: int) -> None:
    q, pages, table, length = inputs(time, [9, 1, 0, 14])
    found = definition(q, pages, table, length, 0.3)
    for row, count in enumerate(length.tolist()):
        if not count:
            assert not found[row].any()
            continue
        entries = pages[table[row].long()].flatten(0, 1)[: count + time - 1]
        k, v = (half.unflatten(-1, (GROUPS, SIZE)).transpose(0, 1) for half in entries.chunk(2, dim=-1))
        seen = torch.arange(count + time - 1, device=DEVICE) < count + torch.arange(time, device=DEVICE).unsqueeze(1)
        share = q[row].transpose(0, 1)
        wanted = F.scaled_dot_product_attention(share, k, v, attn_mask=seen, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(found[row], wanted.transpose(0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("splits", [1, 3, None])
@pytest.mark.parametrize("time", [1, 3, 9])
def test_the_twin_is_the_definition(triton_kernels: None, time: int, splits: int | None) -> None:
    from fathom.kernels.triton import attention as twins

    args = *inputs(time, [40, 1, 0, 17]), 0.3
    found = twins.paged_grouped_attention(*args, splits)
    torch.testing.assert_close(found, definition(*args), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, None])
def test_the_twin_in_bf16(splits: int | None) -> None:
    from fathom.kernels.triton import attention as twins

    generator = torch.Generator("cuda").manual_seed(0)
    q = torch.randn(64, 1, 14, 64, device="cuda", generator=generator).bfloat16()
    pages = torch.randn(64 * 5 + 1, 64, 2 * 2 * 64, device="cuda", generator=generator).bfloat16()
    table = (1 + torch.randperm(64 * 5, device="cuda")).view(64, 5).int()
    length = torch.randint(1, 320, (64,), device="cuda").int()
    wanted = definition(q.float(), pages.float(), table, length, 0.125)
    found = twins.paged_grouped_attention(q, pages, table, length, 0.125, splits).float()
    assert float((found - wanted).norm() / wanted.norm()) < 5e-3
