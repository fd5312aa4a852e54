"""What a request draws does not depend on its neighbours: how nearly in float32, and to the last bit in float64.

Products of other row counts round differently, so in float32 the log-probabilities of one text differ in their last
bits from crowd to crowd, and a token may differ where the draw comes as close as that to a border. Measured over
104,552 tokens of the model below by torch's operations: they differed by 8.6e-6 at most, no greedy text parted, and one
sampled text of 520 did. Where a C compiler takes all but the prompts out of this, by 2.4e-5, and no text parted. In
float64 (`Engine(model.double(), ...)`) the last bits are gone once logits are rounded to float32.
"""

import random
from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch

from fathom.config import AttentionConfig, ModelConfig, MoEConfig, SamplingConfig
from fathom.infer import Engine, Piece, Request
from fathom.model import Transformer

VOCAB = 512
LAWS = {"greedy": SamplingConfig(temperature=0.0), "sampled": SamplingConfig(temperature=1.0, top_p=0.9)}


@pytest.fixture(scope="module")
def wide() -> Transformer:
    """Its matrices are large enough that libraries choose other kernels for other row counts."""
    model = Transformer(
        ModelConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            num_hidden_layers=3,
            intermediate_size=128,
            max_position_embeddings=512,
            initializer_range=0.2,
            attention=AttentionConfig(
                num_attention_heads=4,
                num_key_value_heads=4,
                kv_lora_rank=32,
                qk_nope_head_dim=16,
                qk_rope_head_dim=8,
                v_head_dim=16,
            ),
            moe=MoEConfig(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32),
        )
    )
    model.initialise(torch.Generator().manual_seed(0))
    return model


def requests(law: str, tokens: int) -> list[Request]:
    """So many tokens in texts of 60 to 140 behind prompts of 1 to 40."""
    rng = random.Random(0)
    return [
        Request(
            [rng.randrange(VOCAB) for _ in range(rng.randint(1, 40))],
            SamplingConfig(
                temperature=LAWS[law].temperature, top_p=LAWS[law].top_p, max_tokens=100 + rng.randint(-40, 40)
            ),
            seed=number,
            stop_ids=frozenset(),
            top_logprobs=2,
        )
        for number in range(-(-tokens // 100))
    ]


def differing(ones: Sequence[list[Piece]], others: Sequence[list[Piece]]) -> tuple[int, int, float, float]:
    """Tokens; texts that differ; the largest difference of log-probabilities before; of the two likeliest tokens where
    texts part, how far they are from one another."""
    parted, gap, margin = 0, 0.0, 0.0
    for (one,), (other,) in zip(ones, others, strict=True):
        pairs = list(zip(one.tokens, other.tokens, strict=True))
        common = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
        if common < len(pairs):
            parted += 1
            (_, best), (_, second) = (one.top_logprobs or [])[common]
            margin = max(margin, best - second)
        gap = max([gap, *(abs(a - b) for a, b in zip(one.logprobs[:common], other.logprobs[:common], strict=True))])
    return sum(len(piece.tokens) for (piece,) in ones), parted, gap, margin


def crowds(model: Transformer, asked: list[Request]) -> list[list[list[Piece]]]:
    """The same requests among 47 others, and backwards among 12 in pages, of which there are too few."""
    backwards = Engine(model, rows=13, pages=60, page_size=16, step_tokens=64).generate(asked[::-1])
    return [Engine(model, rows=48).generate(asked), backwards[::-1]]


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_in_float64_not_a_bit_depends_on_the_neighbours(wide: Transformer, law: str) -> None:
    model = deepcopy(wide).double()
    asked = requests(law, 1200)
    one, other = crowds(model, asked)
    alone = Engine(model, rows=1).generate(asked[:3])
    assert differing(one, other)[1:] == (0, 0.0, 0.0)
    assert differing(alone, one[:3])[1:] == (0, 0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("law", LAWS)
def test_a_hundred_thousand_tokens_do_not_depend_on_their_neighbours(
    wide: Transformer, law: str, dtype: torch.dtype
) -> None:
    tokens, parted, gap, margin = differing(*crowds(deepcopy(wide).to(dtype), requests(law, 52_000)))
    print(f"{law}, {dtype}: {tokens} tokens, {parted} texts differ, largest gap {gap:.1e}, margin there {margin:.1e}")
    assert tokens > 50_000
    if dtype == torch.float64:
        assert (parted, gap) == (0, 0.0)
    else:
        assert parted <= 2 and 0 < gap < 1e-4  # a tie may be drawn otherwise on another processor
        assert law == "sampled" or margin < 1e-4
