"""The fused pieces of a decoding step: each Triton twin against its definition."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.kernels import decode
from fathom.kernels.latents import dequantize_latents, latent_bytes
from fathom.model.rope import rotation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = [1, 5, 20]  # vectors, one tile, a tile and a part


@pytest.fixture
def twin(triton_kernels: None) -> Any:
    """The module of the twins."""
    from fathom.kernels.triton import decode as module

    return module


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
def test_norm_linear_of_one_and_of_two_matrices(twin: Any, rows: int) -> None:
    x, gain, first, second = draw(rows, 72), 1 + draw(72), draw(40, 72), draw(7, 72)
    for matrices in ((first,), (first, second)):
        close(twin.norm_linear(x, gain, 1e-6, *matrices), decode.norm_linear.__wrapped__(x, gain, 1e-6, *matrices))


@pytest.mark.parametrize("rows", ROWS)
def test_linear_reads_strided_rows(twin: Any, rows: int) -> None:
    x, weight = draw(rows, 100)[:, 4:76], draw(33, 72)
    close(twin.linear(x, weight), decode.linear.__wrapped__(x, weight))


@pytest.mark.parametrize("rows", ROWS)
def test_products_are_added_in_place(twin: Any, rows: int) -> None:
    weight, inner = draw(48, 20), draw(rows, 40)
    for name, given in (("add_linear_", inner[:, :20]), ("add_swiglu_", inner)):
        found, wanted = draw(rows, 48), draw(rows, 48)
        getattr(twin, name)(found, given, weight)
        getattr(decode, name).__wrapped__(wanted, given, weight)
        close(found, wanted)


@pytest.mark.parametrize("rows", ROWS)
def test_queries_are_absorbed_and_latents_written(twin: Any, rows: int) -> None:
    heads, nope, rope, rank, value, page = 3, 20, 12, 40, 18, 4
    q, kv, gain = draw(rows, heads * (nope + rope)), draw(rows, rank + rope), 1 + draw(rank)
    w_kv = draw(heads, nope + value, rank)
    angles = rotation(torch.rand(rope // 2), torch.arange(12).unsqueeze(0), 1.1).unit[0, :, 0]
    turns = torch.view_as_real(angles).contiguous().to(DEVICE)
    place = torch.arange(rows, dtype=torch.int32, device=DEVICE) % 12
    place[rows // 2] = -1 if rows > 1 else 3
    table = (torch.randperm(3 * rows).view(rows, 3)).int().to(DEVICE)
    results = []
    for function in (twin.absorb_query, decode.absorb_query.__wrapped__):
        pages = torch.full((3 * rows, page, rank + rope), 7.0, device=DEVICE)
        results.append((function(q, kv, gain, 1e-6, w_kv, turns, place, table, pages), pages))
    (found, found_pages), (wanted, wanted_pages) = results
    busy = place >= 0
    close(found[busy], wanted[busy])
    close(found_pages, wanted_pages)  # an idle row writes nothing
    assert int((found_pages != 7.0).all(-1).sum()) == int(busy.sum())


@pytest.mark.parametrize(("biased", "normed"), [(True, False), (False, True)])
@pytest.mark.parametrize("rows", ROWS)
def test_heads_are_turned_and_keys_and_values_written(twin: Any, rows: int, biased: bool, normed: bool) -> None:
    heads, groups, size, page = 6, 2, 12, 4
    q, k, v = (draw(rows, n * size + 3, seed=n)[:, 3:] for n in (heads, groups, groups + 1))
    v = v[:, : groups * size]
    biases = (draw(heads * size), draw(groups * size), draw(groups * size, seed=1)) if biased else None
    gains = (1 + draw(size), 1 + draw(size, seed=1)) if normed else None
    turns = (
        torch.view_as_real(torch.polar(torch.ones(12, size // 2), draw(12, size // 2).cpu())).contiguous().to(DEVICE)
    )
    place = torch.arange(rows, dtype=torch.int32, device=DEVICE) % 12
    place[rows // 2] = -1 if rows > 1 else 3
    table = (torch.randperm(3 * rows).view(rows, 3)).int().to(DEVICE)
    results = []
    for function in (twin.turn_heads, decode.turn_heads.__wrapped__):
        pages = torch.full((3 * rows, page, 2 * groups * size), 7.0, device=DEVICE)
        results.append((function(q, k, v, biases, gains, 1e-6, turns, place, table, pages), pages))
    (found, found_pages), (wanted, wanted_pages) = results
    busy = place >= 0
    close(found[busy], wanted[busy])
    close(found_pages, wanted_pages)
    assert int((found_pages != 7.0).all(-1).sum()) == int(busy.sum())


@pytest.mark.parametrize("rows", ROWS)
def test_latents_are_packed_as_they_are_written(twin: Any, rows: int) -> None:
    heads, nope, rope, rank, page = 3, 20, 12, 40, 4
    q, kv, gain = draw(rows, heads * (nope + rope)), draw(rows, rank + rope), 1 + draw(rank)
    w_kv, turns = draw(heads, nope, rank), draw(12, rope // 2, 2)
    kv[-1, :rank] = 0.0  # a latent of zeros
    place = torch.arange(rows, dtype=torch.int32, device=DEVICE) % 12
    place[rows // 2] = -1 if rows > 1 else 3
    table = (torch.randperm(3 * rows).view(rows, 3)).int().to(DEVICE)
    results = []
    for function in (twin.absorb_query, decode.absorb_query.__wrapped__):
        pages = torch.zeros(3 * rows, page, latent_bytes(rank, rope), dtype=torch.uint8, device=DEVICE)
        results.append((function(q, kv, gain, 1e-6, w_kv, turns, place, table, pages), pages))
    (found, found_pages), (wanted, wanted_pages) = results
    busy = place >= 0
    close(found[busy], wanted[busy])
    assert torch.equal(found_pages.any(-1), wanted_pages.any(-1))  # an idle row writes nothing
    end = rank + 2 * rope
    close(*(pages[..., end : end + 4].view(torch.float32) for pages in (found_pages, wanted_pages)))
    values = [dequantize_latents(pages, rank, rope) for pages in (found_pages, wanted_pages)]
    # a norm that is rounded otherwise moves a number over the middle between two codes once in a while
    assert (values[0] != values[1]).float().mean() < 0.03
    step = 2**-3 if DEVICE == "cuda" else 0.51  # Triton's interpreter loses the carry where the exponent grows
    torch.testing.assert_close(*values, rtol=step, atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
def test_values_are_expanded(twin: Any, rows: int) -> None:
    context, w_kv = draw(rows, 3, 24), draw(3, 30, 24)
    close(twin.expand_value(context, w_kv, 20), decode.expand_value.__wrapped__(context, w_kv, 20))


@pytest.mark.parametrize(
    ("experts", "k", "scoring", "biased", "groups", "kept", "normalise"),
    [
        (12, 3, "sigmoid", True, 3, 2, True),
        (12, 3, "sigmoid", False, 3, 1, True),
        (10, 2, "softmax", False, 1, 1, False),
        (64, 6, "sigmoid", True, 1, 1, True),
    ],
)
def test_experts_are_chosen_alike(
    twin: Any, experts: int, k: int, scoring: str, biased: bool, groups: int, kept: int, normalise: bool
) -> None:
    logits = draw(9, experts + 4)[:, :experts]
    args = (logits, 0.3 * draw(experts), k, scoring, biased, groups, kept, normalise, 2.5)
    (found, weights), (wanted, wanted_weights) = twin.route(*args), decode.route.__wrapped__(*args)
    assert torch.equal(found, wanted)
    close(weights, wanted_weights)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("rows", "gather"), [(1, None), (3, False), (3, True), (20, None)])
def test_experts_are_added(twin: Any, rows: int, gather: bool | None, shared: bool) -> None:
    """Tokens read their experts, or experts gather their tokens: some have none, others several tiles."""
    n_experts, k, size, width = 8, 2, 24, 48
    experts = torch.stack([torch.randperm(5)[:k] for _ in range(rows)]).int().to(DEVICE)
    gain, weights = 1 + draw(width), torch.rand(rows, k).to(DEVICE)
    gate_up, down = draw(n_experts, 2 * size, width), draw(n_experts, width, size)
    beside = (draw(rows, 3 + 64)[:, 3:], draw(width, 32)) if shared else ()
    found, wanted = draw(rows, width), draw(rows, width)
    twin.add_experts_(found, gain, 1e-6, experts, weights, gate_up, down, *beside, gather=gather)
    decode.add_experts_.__wrapped__(wanted, gain, 1e-6, experts, weights, gate_up, down, *beside)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=5e-4)  # of sums near 100
