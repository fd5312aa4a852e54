"""Decoding by graphs on a GPU: the texts of the engine without them, and of a CPU."""

from dataclasses import replace

import pytest
import torch

from fathom.config import AttentionConfig, ModelConfig, MoEConfig, SamplingConfig
from fathom.infer import Engine, Piece, Request
from fathom.infer.fp8 import compare_fp8
from fathom.model import Transformer

CONFIG = ModelConfig(
    vocab_size=1024,
    hidden_size=128,
    num_hidden_layers=3,
    intermediate_size=256,
    max_position_embeddings=512,
    initializer_range=0.08,
    num_nextn_predict_layers=0,
    attention=AttentionConfig(
        num_attention_heads=4, q_lora_rank=48, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32
    ),
    moe=MoEConfig(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=64, first_k_dense_replace=1),
)
GROUPED = replace(
    CONFIG,
    model_type="qwen2",
    attention=AttentionConfig(
        kind="gqa", num_attention_heads=6, num_key_value_heads=2, head_dim=32, attention_bias=True
    ),
    moe=MoEConfig(n_routed_experts=0),
)
LAWS = [SamplingConfig(temperature=0.0, max_tokens=40), SamplingConfig(temperature=0.9, top_p=0.9, max_tokens=40)]


@pytest.fixture(scope="module", params=[CONFIG, GROUPED], ids=["latents", "groups"])
def models(request: pytest.FixtureRequest) -> tuple[Transformer, Transformer]:
    """The same weights on the GPU and on the CPU."""
    cpu = Transformer(request.param).eval()
    cpu.initialise(torch.Generator().manual_seed(0))
    gpu = Transformer(request.param).eval().cuda()
    gpu.load_state_dict(cpu.state_dict())
    return gpu, cpu


def requests(law: SamplingConfig) -> list[Request]:
    """Some share 70 tokens of a prompt, others none."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(0, 1024, (70,), generator=generator).tolist()
    prompts = [torch.randint(0, 1024, (5 + 9 * i,), generator=generator).tolist() for i in range(10)]
    prompts = [[*shared, *prompt] if i % 2 else prompt for i, prompt in enumerate(prompts)]
    return [Request(prompt, law, seed=i, stop_ids=frozenset({3}), n=1 + i % 2) for i, prompt in enumerate(prompts)]


def texts(engine: Engine, asked: list[Request]) -> list[list[int]]:
    return [piece.tokens for pieces in engine.generate(asked) for piece in pieces]


@pytest.mark.gpu
@pytest.mark.parametrize("law", LAWS, ids=["greedy", "top-p"])
def test_graphs_change_no_text(models: tuple[Transformer, Transformer], law: SamplingConfig) -> None:
    gpu, cpu = models
    asked = requests(law)
    wanted = texts(Engine(gpu, 16, 256), asked)
    assert texts(Engine(gpu, 16, 256, graphs=False), asked) == wanted
    assert texts(Engine(gpu, 16, 256, pages=0), asked) == wanted  # torch's own operations
    assert texts(Engine(cpu, 16, 256), asked) == wanted


@pytest.mark.gpu
def test_longer_requests_are_recorded_anew(models: tuple[Transformer, Transformer]) -> None:
    gpu, _ = models
    engine = Engine(gpu, 4, 256)
    for length in (20, 150):  # the second one needs wider tables than were recorded
        law = SamplingConfig(temperature=0.0, max_tokens=length)
        asked = [Request(list(range(9, 200, 2)), law, seed=0, stop_ids=frozenset()) for _ in range(2)]
        assert texts(engine, asked) == texts(Engine(gpu, 4, 256, graphs=False), asked)


@pytest.mark.gpu
@pytest.mark.parametrize("law", LAWS, ids=["greedy", "top-p"])
def test_invariant_texts_depend_on_nobody(models: tuple[Transformer, Transformer], law: SamplingConfig) -> None:
    gpu, _ = models
    asked = requests(law)
    wanted = texts(Engine(gpu, 16, 256, invariant=True), asked)
    one = Engine(gpu, 1, 256, invariant=True)
    assert [text for request in asked for text in texts(one, [request])] == wanted
    few = Engine(gpu, 16, 256, invariant=True, pages=16, page_size=32)
    assert texts(few, asked) == wanted
    assert few.counters.preemptions > 0
    assert texts(Engine(gpu, 16, 256, invariant=True, step_tokens=32, prefix_cache=False), asked) == wanted


@pytest.mark.gpu
@pytest.mark.parametrize("law", LAWS, ids=["greedy", "top-p"])
def test_latents_in_fp8_are_those_of_a_cpu(models: tuple[Transformer, Transformer], law: SamplingConfig) -> None:
    """Numbers near the middle between two codes may be rounded otherwise: texts can part there, their laws hardly."""
    gpu, cpu = models
    if gpu.config.attention.kind == "gqa":
        with pytest.raises(ValueError, match="gqa, which caches no latents"):
            Engine(gpu, 16, 256, latents="fp8")
        return
    asked = requests(law)
    engine = Engine(gpu, 16, 256, latents="fp8")
    pieces = [piece for each in engine.generate(asked) for piece in each]
    assert engine.counters.prefix_hits > 0
    assert [piece.tokens for piece in pieces] == texts(Engine(gpu, 16, 256, graphs=False, latents="fp8"), asked)
    exact = [piece for each in Engine(gpu, 16, 256).generate(asked) for piece in each]
    wanted = [piece for each in Engine(cpu, 16, 256, pages=16 * 4, latents="fp8").generate(asked) for piece in each]
    assert sum(a.tokens == b.tokens for a, b in zip(pieces, wanted, strict=True)) >= len(wanted) - 2
    near = [_gap(a, b) for a, b in zip(pieces, wanted, strict=True)]
    far = [_gap(a, b) for a, b in zip(exact, wanted, strict=True)]
    assert max(near) < 0.5 * max(far)
    for rounding, text in ((compare_fp8(gpu), "GPU"), (compare_fp8(cpu), "CPU")):
        assert 1e-3 < rounding.error < 0.1, text


def _gap(one: Piece, other: Piece) -> float:
    """How far log-probabilities are apart up to where the texts part."""
    pairs = zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=False)
    gap = 0.0
    for a, b, first, second in pairs:
        if a != b:
            break
        gap = max(gap, abs(first - second))
    return gap


def test_invariance_is_refused_where_it_cannot_be_had() -> None:
    model = Transformer(CONFIG)
    with pytest.raises(ValueError, match="invariant=True needs pages on a GPU"):
        Engine(model, 4, invariant=True)
