"""Multi-token prediction: which state and which token predict which."""

import torch

from fathom.config import ModelConfig, MoEConfig
from fathom.model import CacheSlots, LatentCache, RoutingTrace, Transformer
from fathom.model.rope import rope_frequencies, rotation

CONFIG = ModelConfig(
    vocab_size=32,
    hidden_size=24,
    num_hidden_layers=2,
    intermediate_size=32,
    num_nextn_predict_layers=2,
    moe=MoEConfig(n_routed_experts=4, first_k_dense_replace=1),
)
TOKENS = torch.tensor([[5, 9, 1, 30, 8, 2, 17, 3]])


def random_model() -> Transformer:
    model = Transformer(CONFIG)
    generator = torch.Generator().manual_seed(0)
    model.initialise(generator)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if "norm" in name else 0.2 * noise
    return model


def further(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """States of the first module: place i from the state at i and token i + 1, so it predicts token i + 2."""
    return model.predict_further(0, model(tokens)[:, :-1], tokens[:, 1:])


@torch.no_grad()
def test_module_by_its_equations() -> None:
    """V3 eq. 21-23, with the embedding first as in the released weights."""
    model = random_model()
    module, hidden = model.mtp[0], model(TOKENS)[:, :-1]
    emb = model.embedding.weight[TOKENS[:, 1:]]
    joined = torch.cat((module.embed_norm(emb), module.hidden_norm(hidden)), dim=-1)
    turn = rotation(rope_frequencies(CONFIG.rope, CONFIG.attention.qk_rope_head_dim), torch.arange(7).unsqueeze(0))
    expected = module.norm(module.block(joined @ module.projection.weight.T, turn))
    torch.testing.assert_close(further(model, TOKENS), expected)


@torch.no_grad()
def test_place_i_sees_tokens_up_to_i_plus_one() -> None:
    """It predicts token i + 2, which it must not have seen."""
    model = random_model()
    before = further(model, TOKENS)
    changed = TOKENS.clone()
    changed[0, 4] = 11
    moved = (further(model, changed) - before).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == [False, False, False, True, True, True, True]


@torch.no_grad()
def test_the_second_module_builds_on_the_first() -> None:
    model = random_model()
    first = further(model, TOKENS)
    second = model.predict_further(1, first[:, :-1], TOKENS[:, 2:])
    changed = TOKENS.clone()
    changed[0, 5] = 11
    other = model.predict_further(1, further(model, changed)[:, :-1], changed[:, 2:])
    moved = (other - second).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == [False, False, False, True, True, True]  # place 3 sees token 5 and predicts token 6


def test_embedding_and_head_are_shared() -> None:
    model = random_model()
    model.logits(further(model, TOKENS)).logsumexp(-1).sum().backward()
    assert (model.head.weight.grad != 0).any()
    assert (model.embedding.weight.grad[TOKENS[0]] != 0).any(-1).all()
    assert (model.layers[0].attention.o_proj.weight.grad != 0).any()  # through the state of the trunk


def test_experts_of_the_module_are_traced_behind_those_of_the_trunk() -> None:
    model, trace = random_model(), RoutingTrace()
    hidden = model(TOKENS, trace=trace)
    model.predict_further(0, hidden[:, :-1], TOKENS[:, 1:], trace=trace)
    assert [load.sum().item() for load in trace.loads] == [8 * 2, 7 * 2]


@torch.no_grad()
def test_drafting_from_the_cache_is_the_whole_pass() -> None:
    model = random_model()
    whole = further(model, TOKENS)
    hidden = model(TOKENS)
    cache = LatentCache(CONFIG, rows=1, capacity=8)
    for place in range(7):
        slots = CacheSlots.at(cache, 0, torch.tensor([[place]]), place + 1, fresh=place == 0)
        here = slice(place, place + 1)
        state = model.predict_further(0, hidden[:, here], TOKENS[:, place + 1 : place + 2], slots=slots)
        torch.testing.assert_close(state, whole[:, here], atol=1e-5, rtol=1e-4)
    assert [bool(layer.any()) for layer in cache.layers] == [False, False, True, False]
