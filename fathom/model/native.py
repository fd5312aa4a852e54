"""The model for a few tokens as one call into C: the tables of `streamed_layers` in panels, and where they lie."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.config import ModelConfig
from fathom.kernels.step import (
    BlockPointers,
    Pass,
    Routing,
    Shape,
    norm_into,
    panel_product,
    panels,
    run_blocks,
)
from fathom.model.block import Block
from fathom.model.cache import CacheSlots, EngineSlots, PagedSlots, Slots
from fathom.model.decode import rotations
from fathom.model.linear import RMSNorm
from fathom.model.mla import MLA
from fathom.model.moe import MoE, RoutingTrace
from fathom.model.mtp import MTPModule
from fathom.model.streamed_layers import Norm, StreamedMLA, StreamedMoE, StreamedSwiGLU
from fathom.model.transformer import Transformer

State = Float[Tensor, "B T D"]


def reads_natively(slots: Slots) -> bool:
    """Whether the cache behind these slots is one that C reads: float32, in stretches or pages."""
    return isinstance(slots, CacheSlots | PagedSlots) and slots.cache.layers[0].dtype == torch.float32


class NativeLayout:
    """A copy of all weights, in panels."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config = model, model.config
        with torch.no_grad():
            self.blocks = [_NativeBlock(block) for block in model.layers]  # pyright: ignore[reportArgumentType]
            self.mtp = [_NativeMTP(module) for module in model.mtp]  # pyright: ignore[reportArgumentType]
            self.norm = Norm(model.norm)
            self.head = panels(model.head_weight.T)
        self.shape = _shape(model.config, model.layers[0])  # pyright: ignore[reportArgumentType]
        self._pointers = [block.pointers for block in self.blocks]
        self._moe = [block.is_moe for block in self.blocks].count(True)
        self._turns = rotations(model, 64)

    def states(self, tokens: Int[Tensor, "B T"], slots: Slots, trace: RoutingTrace | None) -> State:
        """As `Streamed.__call__`."""
        x = self._embedded(tokens)
        experts = self._run(self.blocks, x, slots, self._moe)
        if trace is not None:
            trace.experts += experts[..., : self.config.moe.num_experts_per_tok].unbind()
        hidden = torch.empty_like(x)
        norm_into(x, float(self.norm.root), self.norm.gain, hidden)
        return hidden.view(*tokens.shape, -1)

    def further(self, depth: int, hidden: State, tokens: Int[Tensor, "B T"], slots: Slots) -> State:
        """As `Transformer.predict_further`."""
        mtp = self.mtp[depth]
        x = mtp.joined(hidden.flatten(0, 1).contiguous(), self._embedded(tokens))
        self._run([mtp.block], x, slots, int(mtp.block.is_moe))
        out = torch.empty_like(x)
        norm_into(x, float(mtp.norm.root), mtp.norm.gain, out)
        return out.view(*tokens.shape, -1)

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """As `Transformer.logits`."""
        return panel_product(hidden.contiguous(), self.head, self.config.vocab_size, torch.get_num_threads())

    def _embedded(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "N D"]:
        return self.model.embedding(tokens).detach().flatten(0, 1)

    def _run(
        self, blocks: list["_NativeBlock"], x: Float[Tensor, "N D"], slots: Slots, moe: int
    ) -> Int[Tensor, "L B T S"]:
        """`x` through blocks, in place: the experts that each token met in every layer that has some."""
        assert isinstance(slots, CacheSlots | PagedSlots)  # `reads_natively` was asked
        positions, entries, layers = slots.positions.contiguous(), slots.entries.contiguous(), slots.cache.layers
        table, page_size = _table(slots)
        assert positions.dtype == entries.dtype == torch.int64 and table.dtype == torch.int32  # C takes their word
        turns = self._turned(int(positions.max()) + 1)
        routing = self.shape.routing
        experts = positions.new_empty(moe, *positions.shape, routing.chosen + routing.shared)
        for block in blocks:
            block.pointers.pages = layers[block.layer].data_ptr()
        through = Pass(
            x.shape[0],
            positions.shape[1],
            table.stride(0),
            page_size,
            slots.length,
            positions.data_ptr(),
            entries.data_ptr(),
            table.data_ptr(),
            turns.data_ptr(),
            experts.data_ptr(),
            torch.get_num_threads(),
        )
        run_blocks(self.shape, [block.pointers for block in blocks], through, x)
        return experts

    def _turned(self, places: int) -> Float[Tensor, "L F 2"]:
        """The rotations of at least so many places."""
        if len(self._turns) < places:
            self._turns = rotations(self.model, 1 << (places - 1).bit_length())
        return self._turns


def _table(slots: EngineSlots) -> tuple[Int[Tensor, "B C"], int]:
    """The pages of each row and their size: a row that lies in one stretch is one page."""
    if isinstance(slots, PagedSlots):
        return slots.table, slots.cache.page_size
    rows = torch.arange(slots.first, slots.first + slots.positions.shape[0], dtype=torch.int32)
    return rows.unsqueeze(1), slots.cache.capacity


def _shape(config: ModelConfig, block: Block) -> Shape:
    mla = block.attention
    assert isinstance(mla, MLA)
    a, c = config.attention, config.moe
    limited = c.topk_method != "greedy"
    routing = Routing(
        c.n_routed_experts,
        c.num_experts_per_tok,
        c.n_shared_experts,
        c.n_group if limited else 1,
        c.topk_group if limited else 1,
        2 if c.has_selection_bias else 1,
        c.scoring_func == "softmax",
        c.has_selection_bias,
        c.norm_topk_prob,
        c.routed_scaling_factor,
    )
    return Shape(
        config.hidden_size,
        a.num_attention_heads,
        a.kv_lora_rank,
        a.qk_nope_head_dim,
        a.qk_rope_head_dim,
        a.v_head_dim,
        a.q_lora_rank or 0,
        _root(config.hidden_size, config.rms_norm_eps),
        _root(a.kv_lora_rank, mla.kv_a_norm.eps),
        0.0 if a.q_lora_rank is None else _root(a.q_lora_rank, mla.q_a_norm.eps),
        mla.scale,
        routing,
    )


def _root(width: int, eps: float) -> float:
    return (width * eps) ** 0.5


class _NativeBlock:
    """One block in panels."""

    def __init__(self, block: Block) -> None:
        assert isinstance(block.attention, MLA)
        self.layer, self.is_moe = block.attention.layer, isinstance(block.feed_forward, MoE)
        kept = self._attention(block.attention, block.attention_norm) | self._feed_forward(block)
        self._kept = kept  # what the pointers point to
        inner = kept["down"].shape[-2]
        self.pointers = BlockPointers(inner=inner, **{name: tensor.data_ptr() for name, tensor in kept.items()})

    def _attention(self, mla: MLA, norm: RMSNorm) -> dict[str, Tensor]:
        layer = StreamedMLA(mla, norm, int8=False)
        tables = {
            "inputs": layer.inputs,
            "queries": layer.queries,
            "w_uk": layer.w_uk,
            "w_uv": layer.w_uv,
            "out": layer.out,
        }
        laid_out = {name: panels(table) for name, table in tables.items() if table is not None}
        return laid_out | {"latent_gain": layer.latent_norm.gain}

    def _feed_forward(self, block: Block) -> dict[str, Tensor]:
        if not isinstance(block.feed_forward, MoE):
            layer = StreamedSwiGLU(block.feed_forward, block.feed_forward_norm, int8=False)  # pyright: ignore
            return {"gate_up": panels(layer.gate_up), "down": panels(layer.down)}
        moe = StreamedMoE(block.feed_forward, block.feed_forward_norm, int8=False)
        width = moe.router.shape[0]
        return {
            "router": panels(moe.router),
            "bias": moe.bias,
            "gate_up": panels(moe.gate_up.unflatten(0, (-1, width))),
            "down": panels(moe.down.unflatten(0, (-1, block.feed_forward.down.shape[-1]))),
        }


class _NativeMTP:
    """An MTP module in panels."""

    def __init__(self, module: MTPModule) -> None:
        self.embed_norm, self.hidden_norm, self.norm = map(Norm, (module.embed_norm, module.hidden_norm, module.norm))
        of_embedding, of_hidden = module.projection.weight.chunk(2, dim=1)
        parts = (self.embed_norm.read_by(of_embedding), self.hidden_norm.read_by(of_hidden))
        self.projection = panels(torch.cat(parts))
        self.block = _NativeBlock(module.block)

    def joined(self, hidden: Float[Tensor, "N D"], embedding: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """What the module's block reads."""
        rows, width = hidden.shape
        both = hidden.new_empty(rows, 2 * width)
        norm_into(embedding, float(self.embed_norm.root), None, both)
        norm_into(hidden, float(self.hidden_norm.root), None, both, width)
        return panel_product(both, self.projection, width, torch.get_num_threads())
