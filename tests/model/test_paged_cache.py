"""Pages of the cache: the same values as rows in one stretch, wherever the pages lie."""

import math
import random

import pytest
import torch

from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.kernels.attention import paged_latent_attention
from fathom.model import CacheSlots, LatentCache, PagedCache, PagedSlots, Slots, Transformer
from fathom.model.mla import absorbed_tokens

LATENT = AttentionConfig(
    num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=16, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4
)
GROUPED = AttentionConfig(kind="gqa", num_attention_heads=4, num_key_value_heads=2, head_dim=8, qk_norm=True)


def build(attention: AttentionConfig) -> Transformer:
    model = Transformer(
        ModelConfig(
            vocab_size=32,
            hidden_size=24,
            num_hidden_layers=2,
            intermediate_size=32,
            initializer_range=0.25,
            attention=attention,
            moe=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
        )
    )
    model.initialise(torch.Generator().manual_seed(0))
    return model


def states(model: Transformer, tokens: torch.Tensor, following: torch.Tensor, slots: Slots) -> torch.Tensor:
    hidden = model(tokens, slots=slots)
    return torch.cat((hidden, model.predict_further(0, hidden, following, slots=slots)))


@torch.no_grad()
@pytest.mark.parametrize("attention", [LATENT, GROUPED], ids=["mla", "gqa"])
@pytest.mark.parametrize("size", [1, 3, 16])
def test_pages_in_any_order_hold_what_a_stretch_holds(attention: AttentionConfig, size: int) -> None:
    """One pass over empty rows, then steps of one, two and nine tokens: the last expand what is cached."""
    model, length = build(attention), 16
    tokens = torch.randint(32, (3, length + 1), generator=torch.Generator().manual_seed(1))
    numbers = list(range(1, 60))
    random.Random(0).shuffle(numbers)
    columns = -(-length // size)
    table = torch.tensor(numbers[: 3 * columns], dtype=torch.int32).view(3, columns)
    stretch, pages = LatentCache(model.config, 4, length), PagedCache(model.config, 60, size)
    starts = torch.tensor([[0], [2], [1]])
    for first, width in ((0, 3), (3, 1), (4, 2), (5, 9)):  # with a token that is read twice, as after a wrong draft
        places = first + torch.arange(width) + (starts if first else torch.zeros_like(starts))
        seen, bound = tokens.gather(1, places), int(places.max()) + 1
        following = tokens.gather(1, places + 1)
        expected = states(model, seen, following, CacheSlots.at(stretch, 1, places, bound, fresh=first == 0))
        actual = states(model, seen, following, PagedSlots.at(pages, table, places, bound, fresh=first == 0))
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    others = [page for page in range(60) if page not in table]
    assert all(not layer[others].any() for layer in pages.layers)


@torch.no_grad()
def test_paged_attention_is_attention_over_each_rows_first_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    pages, q = torch.randn(9, 4, 12, generator=generator), torch.randn(2, 3, 5, 12, generator=generator)
    table = torch.tensor([[7, 2, 5], [3, 8, 0]], dtype=torch.int32)
    length = torch.tensor([9, 3], dtype=torch.int32)
    actual = paged_latent_attention(q, pages, table, length, rank=10, scale=0.3)
    for row, query, head in ((row, t, h) for row in range(2) for t in range(3) for h in range(5)):
        count = int(length[row]) + query
        keys = torch.stack([pages[table[row, j // 4], j % 4] for j in range(count)])
        weights = (keys @ q[row, query, head] * 0.3).softmax(0)
        torch.testing.assert_close(actual[row, query, head], weights @ keys[:, :10], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_copied_pages_are_whole() -> None:
    cache = PagedCache(build(LATENT).config, 6, 4)
    for layer in cache.layers:
        layer.normal_()
    before = [layer.clone() for layer in cache.layers]
    cache.copy_pages(torch.tensor([2, 2]), torch.tensor([5, 0]))
    for layer, old in zip(cache.layers, before, strict=True):
        assert torch.equal(layer, old[[2, 1, 2, 3, 4, 2]])


def test_many_tokens_are_read_with_the_fewer_products() -> None:
    v3 = AttentionConfig(
        num_attention_heads=128,
        num_key_value_heads=128,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )
    assert absorbed_tokens(v3) == pytest.approx(512 * 256 / 768)  # 171 tokens
    few = math.floor(absorbed_tokens(LATENT))
    keys, a = 1000, LATENT

    def absorbed(tokens: int) -> int:
        return tokens * keys * (2 * a.kv_lora_rank + a.qk_rope_head_dim)

    def expanded(tokens: int) -> int:
        width = a.qk_nope_head_dim + a.v_head_dim
        return tokens * keys * (width + a.qk_rope_head_dim) + keys * a.kv_lora_rank * width

    assert absorbed(few) <= expanded(few) and absorbed(few + 1) > expanded(few + 1)
