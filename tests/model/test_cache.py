"""The cache: its size, its rows, and what a query sees of it."""

import torch

from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.model import CacheSlots, LatentCache, Transformer

CONFIG = ModelConfig(vocab_size=32, hidden_size=24, num_hidden_layers=2, intermediate_size=32)
GQA = ModelConfig(
    model_type="qwen3",
    vocab_size=32,
    hidden_size=24,
    num_nextn_predict_layers=0,
    intermediate_size=32,
    attention=AttentionConfig(kind="gqa", num_key_value_heads=2, head_dim=8, qk_norm=True),
    moe=MoEConfig(n_routed_experts=0),
)


def random_model(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        parameter.data *= 8 if parameter.dim() > 1 else 1  # sharp enough for attention to matter
    return model


def test_width_per_token_and_layer() -> None:
    v3 = AttentionConfig(
        num_attention_heads=128,
        num_key_value_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )
    qwen_72b = AttentionConfig(kind="gqa", num_attention_heads=64, num_key_value_heads=8, head_dim=128)
    assert v3.cache_width == 576
    assert 2 * 61 * v3.cache_width == 70_272  # bytes per token in bfloat16
    assert 2 * 80 * qwen_72b.cache_width == 327_680
    cache = LatentCache(ModelConfig(attention=v3, num_nextn_predict_layers=1), rows=3, capacity=7)
    assert [tuple(layer.shape) for layer in cache.layers] == [(3, 7, 576)] * 3  # two layers and an MTP module
    assert (cache.rows, cache.capacity) == (3, 7)


def test_a_query_sees_keys_up_to_its_own_place() -> None:
    slots = CacheSlots.at(LatentCache(CONFIG, 2, 8), 0, torch.tensor([[2, 3], [0, 1]]), 4, fresh=False)
    assert slots.mask.int().tolist() == [[[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 0, 0, 0], [1, 1, 0, 0]]]


def test_entries_are_written_at_their_places_in_their_rows() -> None:
    cache = LatentCache(CONFIG, rows=4, capacity=6)
    slots = CacheSlots.at(cache, 1, torch.tensor([[0, 1], [3, 4]]), 5, fresh=False)
    width = CONFIG.attention.cache_width
    entries = torch.arange(1.0, 5.0).view(2, 2, 1).expand(-1, -1, width)
    seen = slots.extend(1, entries)
    assert seen[..., 0].tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]]
    assert cache.layers[1][..., 0].tolist() == [[0] * 6, [1, 2, 0, 0, 0, 0], [0, 0, 0, 3, 4, 0], [0] * 6]
    assert cache.layers[0].abs().sum() == 0
    cache.copy_rows(torch.tensor([2]), torch.tensor([0]), length=4)
    assert cache.layers[1][0, :, 0].tolist() == [0, 0, 0, 3, 0, 0]


@torch.no_grad()
def test_decoding_rows_of_unequal_length_is_the_whole_forward_pass() -> None:
    """Three prompts of 3, 5 and 4 tokens continue together, each from its own place, in chunks of two tokens."""
    for config in (CONFIG, GQA):
        model = random_model(config)
        tokens = torch.randint(32, (3, 9), generator=torch.Generator().manual_seed(1))
        whole = model(tokens)
        cache = LatentCache(config, rows=5, capacity=12)
        lengths = [3, 5, 4]
        for row, length in enumerate(lengths):
            slots = CacheSlots.at(cache, 1 + row, torch.arange(length).unsqueeze(0), length, fresh=True)
            state = model(tokens[row : row + 1, :length], slots=slots)
            torch.testing.assert_close(state[0], whole[row, :length], atol=1e-5, rtol=1e-4)
        for step in (0, 2):
            places = torch.tensor([[length + step, length + step + 1] for length in lengths])
            slots = CacheSlots.at(cache, 1, places, int(places.max()) + 1, fresh=False)
            state = model(tokens.gather(1, places), slots=slots)
            expected = whole.gather(1, places.unsqueeze(-1).expand(-1, -1, state.shape[-1]))
            torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-4)
        assert all(layer[0].abs().sum() == 0 for layer in cache.layers)  # rows of others stay untouched


@torch.no_grad()
def test_copied_rows_continue_alike() -> None:
    """A group's prompt is computed once."""
    model = random_model(CONFIG)
    cache = LatentCache(CONFIG, rows=3, capacity=8)
    prompt = torch.tensor([[5, 9, 1, 30]])
    model(prompt, slots=CacheSlots.at(cache, 0, torch.arange(4).unsqueeze(0), 4, fresh=True))
    cache.copy_rows(torch.tensor([0, 0]), torch.tensor([1, 2]), length=4)
    slots = CacheSlots.at(cache, 0, torch.full((3, 1), 4), 5, fresh=False)
    state = model(torch.tensor([[7], [7], [8]]), slots=slots)
    assert torch.equal(state[0], state[1])
    torch.testing.assert_close(state[2, 0], model(torch.tensor([[5, 9, 1, 30, 8]]))[0, -1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_mask_cuts_documents_apart() -> None:
    model = random_model(CONFIG)
    tokens = torch.tensor([[5, 9, 1, 30, 8, 2]])
    segments = torch.tensor([0, 0, 0, 1, 1, 1])
    mask = (segments.unsqueeze(0) == segments.unsqueeze(1)).tril().unsqueeze(0)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    packed = model(tokens, positions=positions, mask=mask)
    apart = torch.cat((model(tokens[:, :3]), model(tokens[:, 3:])), dim=1)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-4)
    assert (model(tokens) - apart).abs().max() > 1e-2
