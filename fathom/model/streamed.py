"""The model for a few tokens on a CPU: the same arithmetic over weights laid out to be read at memory speed.

Where a step of decoding moves 20 MB of weights in half a millisecond, module calls, norms of five operations and
products at a third of the memory's speed cost more than all arithmetic. So the weights are copied once: for C, which
takes all layers in one call, or where there is no compiler into tables that torch sums.
"""

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from fathom.kernels.step import has_step
from fathom.kernels.stream import STREAMS, stream, table
from fathom.model.block import Block
from fathom.model.cache import Slots
from fathom.model.mla import MLA
from fathom.model.moe import MoE, RoutingTrace
from fathom.model.mtp import MTPModule
from fathom.model.native import NativeLayout, reads_natively
from fathom.model.streamed_layers import Norm, StreamedMLA, StreamedMoE, StreamedSwiGLU
from fathom.model.transformer import Transformer

MOST_TOKENS = 128  # of one pass: for more the model itself is as fast
NATIVE_TOKENS = 256  # the same where the layers are C, of rows that have up to `VERIFIED` each
MOST_BYTES = 2 << 30  # of a float32 copy: for larger models its memory is worth more than its speed
SUMMED = 64  # entries of a weight that a fingerprint adds up
HEAD_ROWS = 4  # up to which the wide head is streamed
VERIFIED = 8  # tokens a row in a pass that is no prompt's; int8 reads prompts in float32

State = Float[Tensor, "B T D"]


def streams(model: Transformer, int8: bool = False) -> bool:
    """Whether `Streamed` is for this model: latent attention in float32 on a CPU, and not too large for a copy."""
    weight = model.embedding.weight
    small = int8 or sum(parameter.nbytes for parameter in model.parameters()) <= MOST_BYTES
    a = model.config.attention
    even = not (a.kv_lora_rank % 2 or a.qk_nope_head_dim % 2 or (a.q_lora_rank or 0) % 2)  # pairs are turned in place
    on_cpu = STREAMS and weight.device.type == "cpu" and weight.dtype == torch.float32
    return on_cpu and a.kind == "mla" and even and small


class Streamed:
    """Called like the model with `slots`. Passes that fill fresh rows, or have many tokens, are left to the model.

    The copy is made when it is first needed, and again when `weights_may_differ` was called and they do. That is seen
    from the weights themselves: torch counts changes, but not those of its fused optimizers.
    With `int8` all matrices that are read at each step but the router and the two of kv_b_proj are bytes. Else all
    layers are one call into C (`fathom.model.native`), where there is a compiler, unless `native` is False.
    """

    def __init__(self, model: Transformer, int8: bool = False, native: bool = True) -> None:
        self.model, self.int8 = model, int8
        self.native = native and not int8 and has_step()
        self._laid_out: _Layout | NativeLayout | None = None
        self._seen = list[float]()  # the fingerprint of the weights that are laid out
        self._checked = False

    def weights_may_differ(self) -> None:
        """Compare the weights with those that were copied before the next pass."""
        self._checked = False

    def __call__(self, tokens: Int[Tensor, "B T"], slots: Slots, trace: RoutingTrace | None = None) -> State:
        """As `Transformer.forward`, but of a `trace` only `experts` are filled, and nothing is replayed."""
        layout = self._layout_for(tokens, slots)
        return self.model(tokens, slots=slots, trace=trace) if layout is None else layout.states(tokens, slots, trace)

    def predict_further(self, depth: int, hidden: State, tokens: Int[Tensor, "B T"], slots: Slots) -> State:
        """As `Transformer.predict_further`."""
        layout = self._layout_for(tokens, slots)
        if layout is None:
            return self.model.predict_further(depth, hidden, tokens, slots=slots)
        return layout.further(depth, hidden, tokens, slots)

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """As `Transformer.logits`."""
        rows = hidden.shape[0]
        if rows > (MOST_TOKENS if self.int8 else NATIVE_TOKENS if self.native else HEAD_ROWS):
            return self.model.logits(hidden)
        return self._layout().logits(hidden)

    def _layout_for(self, tokens: Tensor, slots: Slots) -> "_Layout | NativeLayout | None":
        """What reads these tokens; None leaves them to the model."""
        if slots.fresh:
            return None
        count, verified = tokens.numel(), tokens.shape[1] <= VERIFIED
        if self.native:
            few = count <= (NATIVE_TOKENS if verified else MOST_TOKENS) and reads_natively(slots)
        else:
            few = count <= MOST_TOKENS or (self.int8 and verified)
        return self._layout() if few else None

    def _layout(self) -> "_Layout | NativeLayout":
        if not self._checked:
            seen = fingerprint(self.model)
            if self._laid_out is None or seen != self._seen:
                self._laid_out = None  # its memory is free for the next
                self._laid_out = NativeLayout(self.model) if self.native else _Layout(self.model, self.int8)
                self._seen = seen
            self._checked = True
        assert self._laid_out is not None
        return self._laid_out


Reader = Transformer | Streamed  # what passes over tokens with a cache go through


class _Layout:
    """A copy of all weights, in tables."""

    def __init__(self, model: Transformer, int8: bool) -> None:
        self.model = model
        with torch.no_grad():
            self.blocks = [_StreamedBlock(block, int8) for block in model.layers]  # pyright: ignore[reportArgumentType]
            self.mtp = [_StreamedMTP(module, int8) for module in model.mtp]  # pyright: ignore[reportArgumentType]
            self.norm = Norm(model.norm)
            self.head = table(model.head_weight.T, int8)

    def states(self, tokens: Int[Tensor, "B T"], slots: Slots, trace: RoutingTrace | None) -> State:
        """As `Streamed.__call__`."""
        x = self.model.embedding(tokens).flatten(0, 1)
        unit = self._unit(tokens, slots)
        for block in self.blocks:
            block(x, unit, slots, trace)
        return self.norm(x).mul_(self.norm.gain).view(*tokens.shape, -1)

    def further(self, depth: int, hidden: State, tokens: Int[Tensor, "B T"], slots: Slots) -> State:
        """As `Transformer.predict_further`."""
        embedding = self.model.embedding(tokens).flatten(0, 1)
        x = self.mtp[depth](hidden.flatten(0, 1), embedding, self._unit(tokens, slots), slots)
        return x.view(*tokens.shape, -1)

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """As `Transformer.logits`."""
        return stream(hidden, self.head)

    def _unit(self, tokens: Tensor, slots: Slots) -> Complex[Tensor, "N 1 F"]:
        return self.model.turn(tokens, None, slots).unit.flatten(0, 1)


class _StreamedBlock:
    def __init__(self, block: Block, int8: bool) -> None:
        assert isinstance(block.attention, MLA)
        kind = StreamedMoE if isinstance(block.feed_forward, MoE) else StreamedSwiGLU
        self.attention = StreamedMLA(block.attention, block.attention_norm, int8)
        self.feed_forward = kind(block.feed_forward, block.feed_forward_norm, int8)  # pyright: ignore[reportArgumentType]

    def __call__(
        self, x: Float[Tensor, "N D"], unit: Complex[Tensor, "N 1 F"], slots: Slots, trace: RoutingTrace | None = None
    ) -> None:
        """Overwrites x."""
        x.add_(self.attention(x, unit, slots))
        if trace is not None and isinstance(self.feed_forward, StreamedMoE):
            out, experts = self.feed_forward.route(x)
            trace.experts.append(experts.view(*slots.positions.shape, -1))
            x.add_(out)
        else:
            x.add_(self.feed_forward(x))


class _StreamedMTP:
    def __init__(self, module: MTPModule, int8: bool) -> None:
        self.embed_norm, self.hidden_norm = Norm(module.embed_norm), Norm(module.hidden_norm)
        of_embedding, of_hidden = module.projection.weight.chunk(2, dim=1)
        parts = (self.embed_norm.read_by(of_embedding), self.hidden_norm.read_by(of_hidden))
        self.projection = table(torch.cat(parts), int8)
        self.block, self.norm = _StreamedBlock(module.block, int8), Norm(module.norm)

    def __call__(
        self,
        hidden: Float[Tensor, "N D"],
        embedding: Float[Tensor, "N D"],
        unit: Complex[Tensor, "N 1 F"],
        slots: Slots,
    ) -> Float[Tensor, "N D"]:
        x = stream(torch.cat((self.embed_norm(embedding), self.hidden_norm(hidden)), dim=-1), self.projection)
        self.block(x, unit, slots)
        return self.norm(x).mul_(self.norm.gain)


@torch.no_grad()
def fingerprint(model: Transformer) -> list[float]:
    """Two numbers for each weight: sums of `SUMMED` entries, each times a number of its place, which change with it.

    Takes as long as reading all weights once.
    """
    found = list[float]()
    for weight in (*model.parameters(), *model.buffers()):
        flat = weight.flatten()
        whole = flat.numel() // SUMMED**2 * SUMMED**2
        sums = flat[:whole].view(-1, SUMMED, SUMMED).sum(1).flatten()
        rest = flat[whole:].float()
        found += [float(part.float().dot(torch.arange(1.0, len(part) + 1).rsqrt_())) for part in (sums, rest)]
    return found
