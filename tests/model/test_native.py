"""One call into C says what the modules say, whoever else is in the pass."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.config import AttentionConfig, ModelConfig, MoEConfig, RopeConfig, SamplingConfig
from fathom.infer import Engine, Request
from fathom.kernels import native
from fathom.kernels.step import has_step
from fathom.model import (
    CacheSlots,
    LatentCache,
    PagedCache,
    PagedSlots,
    RoutingTrace,
    Streamed,
    Transformer,
    streamed,
    streamed_layers,
)

needs_compiler = pytest.mark.skipif(not has_step(), reason="needs a C compiler")
pytestmark = [
    needs_compiler,
    pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="needs fbgemm"),
]

# widths that no vector and no panel divides, so that every loop has an end of its own
V3 = ModelConfig(
    vocab_size=83,
    hidden_size=26,
    intermediate_size=37,
    num_hidden_layers=3,
    initializer_range=0.25,
    attention=AttentionConfig(
        num_attention_heads=5,
        num_key_value_heads=5,
        q_lora_rank=12,
        kv_lora_rank=50,
        qk_nope_head_dim=10,
        qk_rope_head_dim=6,
        v_head_dim=14,
    ),
    moe=MoEConfig(
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=2,
        moe_intermediate_size=19,
        first_k_dense_replace=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
    ),
)
PLAIN_QUERIES = replace(V3, attention=replace(V3.attention, q_lora_rank=None))
V2 = replace(
    PLAIN_QUERIES,
    model_type="deepseek_v2",
    tie_word_embeddings=True,
    rope=RopeConfig(scaling="yarn", factor=4.0, mscale=0.7, mscale_all_dim=0.5, original_max_position_embeddings=64),
    moe=replace(
        V3.moe,
        n_shared_experts=0,
        scoring_func="softmax",
        topk_method="group_limited_greedy",
        norm_topk_prob=False,
    ),
)
DENSE = replace(V3, moe=MoEConfig(n_routed_experts=0))
FOLDED, APART = 1 << 17, -(1 << 40)  # limits within which all or none of W_UK and W_UV are folded
CONFIGS = {"v3": V3, "plain queries": PLAIN_QUERIES, "v2": V2, "dense": DENSE}


def build(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
        for name, buffer in model.named_buffers():
            if "selection_bias" in name:
                buffer.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(4))
    return model


class Cached:
    """Rows of random tokens that are read a few at a time, the first four by the model itself."""

    def __init__(self, model: Transformer, rows: int, page_size: int = 0) -> None:
        self.model, self.rows, self.page_size = model, rows, page_size
        shape, weight = (rows, 16), model.embedding.weight
        self.tokens = torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(7))
        self.places = torch.arange(shape[1]).expand(shape)
        columns = -(-shape[1] // page_size) if page_size else 0
        order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(1)).int()
        self.table = order.view(rows, columns)
        self.cache = (
            PagedCache(model.config, rows * columns, page_size, weight.dtype)
            if page_size
            else LatentCache(model.config, rows + 1, shape[1], weight.dtype)
        )

    def slots(self, first: int, last: int, fresh: bool) -> CacheSlots | PagedSlots:
        if isinstance(self.cache, PagedCache):
            return PagedSlots.at(self.cache, self.table, self.places[:, first:last], last, fresh)
        return CacheSlots.at(self.cache, 1, self.places[:, first:last], last, fresh)

    def read(self, reader: Transformer | Streamed, times: tuple[int, ...] = (1, 2, 1, 3)) -> list[torch.Tensor]:
        """States, an MTP module's, scores and experts of all passes."""
        found, first = list[torch.Tensor](), 0
        for time in (4, *times):
            through = self.model if first == 0 else reader
            slots, tokens = self.slots(first, first + time, first == 0), self.tokens[:, first : first + time]
            trace = RoutingTrace(records=True)
            hidden = through(tokens, slots=slots, trace=trace)
            further = through.predict_further(0, hidden, tokens.roll(1, 1), slots=slots)
            found += [hidden, further, through.logits(hidden.flatten(0, 1)), *trace.experts]
            first += time
        return found


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(CONFIGS[request.param])


@pytest.mark.parametrize(
    ("rows", "page_size", "folded"), [(1, 0, FOLDED), (1, 5, APART), (9, 5, FOLDED), (32, 0, APART)]
)
@torch.inference_mode()
def test_it_is_the_model_in_float64(
    model: Transformer, rows: int, page_size: int, folded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_layers, "FOLDED", folded)
    exact = deepcopy(model).double()
    assert Streamed(model).native
    ours, theirs, definition = (Cached(each, rows, page_size) for each in (model, model, exact))
    found, expected, true = ours.read(Streamed(model)), theirs.read(model), definition.read(exact)
    found += ours.cache.layers
    expected += theirs.cache.layers
    true += definition.cache.layers
    for a, b, c in zip(found, expected, true, strict=True):
        if c.is_floating_point():  # no farther from the truth than torch's float32, but for a rounding
            assert (a - c).norm() < 1e-6 * c.norm() + 2 * (b - c).norm()
        else:
            assert torch.equal(a, c)


@torch.inference_mode()
def test_what_is_no_number_stays_none(model: Transformer) -> None:
    """Every token still goes to different experts, so none has more tokens than there is room for."""
    model.embedding.weight.fill_(torch.nan)
    found = Cached(model, 32).read(Streamed(model))
    assert any(each.is_floating_point() and bool(each.isnan().any()) for each in found)


@torch.inference_mode()
def test_not_a_bit_depends_on_neighbours_pages_or_threads(model: Transformer) -> None:
    reader, rows = Streamed(model), 21
    whole = Cached(model, rows)
    whole.read(model, ())
    prompts = [layer.clone() for layer in whole.cache.layers]
    slots = whole.slots(4, 6, False)
    together = [reader(whole.tokens[:, 4:6], slots=slots)]
    together.append(reader.logits(together[0].flatten(0, 1)).view(rows, 2, -1))

    def again(keep: slice, page_size: int) -> list[torch.Tensor]:
        part = Cached(model, rows, page_size)
        part.tokens, part.places, part.table = whole.tokens[keep], whole.places[keep], part.table[keep]
        for layer, prompt in zip(part.cache.layers, prompts, strict=True):
            if page_size:  # the first four places of a row lie on its first page
                layer[part.table[:, 0].long(), :4] = prompt[1:][keep, :4]
            else:
                layer[1 : 1 + len(part.tokens), :4] = prompt[1:][keep, :4]
        hidden = reader(part.tokens[:, 4:6], slots=part.slots(4, 6, False))
        return [hidden, reader.logits(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)]

    for keep in (slice(0, 1), slice(5, 8), slice(4, 17)):
        for page_size in (0, 5):
            for a, b in zip(again(keep, page_size), together, strict=True):
                assert torch.equal(a, b[keep])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for a, b in zip(again(slice(None), 5), together, strict=True):
            assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def test_what_c_does_not_read_is_left_to_the_model() -> None:
    model = build(replace(V3, attention=replace(V3.attention, kv_lora_rank=48)))
    reader, rows, many = Streamed(model), Cached(model, 2, 8), Cached(model, 260)
    rows.cache = PagedCache(model.config, 4, 8, fp8=True)
    for each in (rows, many):
        for a, b in zip(each.read(reader, (1,)), each.read(model, (1,)), strict=True):
            assert a.shape[-1] == V3.vocab_size or torch.equal(a, b)  # scores come from C all the same


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.compiled.cache_clear()
    yield tmp_path / "fathom" / "native"
    native.compiled.cache_clear()


@pytest.mark.parametrize("level", ["AVX2", "none"])
@torch.inference_mode()
def test_other_processors(level: str, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if level == "AVX2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("needs AVX2")
    flags = native.LEVELS.get(level)
    monkeypatch.setattr(native, "LEVELS", dict.fromkeys(native.LEVELS, flags) if flags else {})
    model = build(V3)
    exact = deepcopy(model).double()
    assert has_step() and len(list(fresh_cache.glob("step-*.so"))) == 1
    found, expected = Cached(model, 3, 5).read(Streamed(model)), Cached(exact, 3, 5).read(exact)
    assert all((a - b).norm() < 2e-6 * b.norm() for a, b in zip(found, expected, strict=True) if b.is_floating_point())


@pytest.mark.parametrize("drafts", [0, 1])
@pytest.mark.parametrize("pages", [0, 40])
def test_greedy_texts_are_those_of_torch(drafts: int, pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(V3)
    law = SamplingConfig(temperature=0.0, max_tokens=24)
    asked = [Request([3 + n, 9, 2 * n + 1], law, seed=0, stop_ids=frozenset()) for n in range(5)]
    texts = list[list[list[int]]]()
    for on in (True, False):
        monkeypatch.setattr(streamed, "has_step", lambda on=on: on)
        engine = Engine(model, rows=3, drafts=drafts, pages=pages, page_size=8)
        texts.append([piece.tokens for (piece,) in engine.generate(asked)])
    assert texts[0] == texts[1]
