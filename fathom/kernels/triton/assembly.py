"""One token's heads at a time, each way (twin of `fathom.kernels.assembly.assemble_heads`)."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

HEADS = 16  # of one turn


def assemble_heads(
    q: Float[Tensor, "B T H Q"],
    kv: Float[Tensor, "B T H C"],
    k_rope: Float[Tensor, "B T R"],
    cos: Float[Tensor, "#B T R2"],
    sin: Float[Tensor, "#B T R2"],
) -> tuple[Float[Tensor, "B T H Q"], Float[Tensor, "B T H Q"], Float[Tensor, "B T H V"]]:
    """Twin of the definition of the same name. Raises ValueError unless R is a power of two."""
    rope = k_rope.shape[-1]
    if rope & (rope - 1):
        raise ValueError(f"a rotated key of {rope} dims does not fit the kernel; it must be a power of two")
    return _Assemble.apply(q, kv, k_rope, cos, sin)  # pyright: ignore[reportReturnType]


class _Assemble(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, kv = q.contiguous(), kv.contiguous()
        batch, time, heads, width = q.shape
        cos, sin = (t.float().expand(batch, -1, -1) for t in (cos, sin))
        cos, sin = cos.contiguous(), sin.contiguous()
        q_out, k_out = torch.empty_like(q), torch.empty_like(q, dtype=kv.dtype)
        rope = k_rope.shape[-1]
        if q.numel():
            _forward[(batch * time,)](
                q, kv, k_rope, cos, sin, q_out, k_out, k_rope.stride(0), k_rope.stride(1), time,
                **_sizes(heads, width, rope, kv.shape[-1]),
            )  # fmt: skip
        ctx.save_for_backward(cos, sin)
        ctx.shapes = kv.shape, k_rope.shape
        return q_out, k_out, kv[..., width - rope :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        of_q, of_k, of_v = (grad.contiguous() for grad in grads)
        kv_shape, rope_shape = ctx.shapes
        batch, time, heads, width = of_q.shape
        q_out, kv_out = torch.empty_like(of_q), of_k.new_empty(kv_shape)
        rope_out = of_k.new_empty(rope_shape)
        if of_q.numel():
            _backward[(batch * time,)](
                of_q, of_k, of_v, cos, sin, q_out, kv_out, rope_out,
                V_LANES=triton.next_power_of_2(of_v.shape[-1]), **_sizes(heads, width, rope_shape[-1], kv_shape[-1]),
            )  # fmt: skip
        return q_out, kv_out, rope_out, None, None


def _sizes(heads: int, width: int, rope: int, kv_width: int) -> dict[str, int]:
    return {
        "H": heads,
        "WIDTH": width,
        "KV": kv_width,
        "NOPE": width - rope,
        "NOPE_LANES": triton.next_power_of_2(width - rope),
        "ROPE": rope,
        "HEADS": min(triton.next_power_of_2(heads), HEADS),
        "num_warps": 4,
    }


@triton.jit
def _turned(x, cos, sin, HEADS: tl.constexpr, ROPE: tl.constexpr):
    """(HEADS, ROPE) with neighbours turned."""
    even, odd = tl.split(tl.reshape(x.to(tl.float32), (HEADS, ROPE // 2, 2)))
    out = tl.join(even * cos[None, :] - odd * sin[None, :], even * sin[None, :] + odd * cos[None, :])
    return tl.reshape(out, (HEADS, ROPE))


@triton.jit
def _forward(
    q, kv, k_rope, cos, sin, q_out, k_out, rope_batch, rope_time, time,
    H: tl.constexpr, WIDTH: tl.constexpr, KV: tl.constexpr, NOPE: tl.constexpr, NOPE_LANES: tl.constexpr,
    ROPE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    angle = tl.arange(0, ROPE // 2)
    c, s = tl.load(cos + token * (ROPE // 2) + angle), tl.load(sin + token * (ROPE // 2) + angle)
    plain, rotated = tl.arange(0, NOPE_LANES), tl.arange(0, ROPE)
    key = tl.load(k_rope + token // time * rope_batch + token % time * rope_time + rotated)
    key = _turned(key[None, :], c, s, 1, ROPE)
    for start in tl.static_range(0, H, HEADS):
        head = start + tl.arange(0, HEADS)
        real = (head < H)[:, None]
        inside = real & (plain < NOPE)[None, :]
        place = (token * H + head)[:, None] * WIDTH
        tl.store(q_out + place + plain[None, :], tl.load(q + place + plain[None, :], mask=inside), mask=inside)
        k = tl.load(kv + (token * H + head)[:, None] * KV + plain[None, :], mask=inside)
        tl.store(k_out + place + plain[None, :], k, mask=inside)
        place += NOPE + rotated[None, :]
        query = tl.load(q + place, mask=real, other=0.0)
        tl.store(q_out + place, _turned(query, c, s, HEADS, ROPE), mask=real)
        tl.store(k_out + place, tl.broadcast_to(key, (HEADS, ROPE)), mask=real)


@triton.jit
def _backward(
    of_q, of_k, of_v, cos, sin, q_out, kv_out, rope_out, V_LANES: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr, KV: tl.constexpr, NOPE: tl.constexpr, NOPE_LANES: tl.constexpr,
    ROPE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Turned back by the same angles; the one rotated key gathers what it did in every head."""
    token = tl.program_id(0).to(tl.int64)
    angle = tl.arange(0, ROPE // 2)
    c, s = tl.load(cos + token * (ROPE // 2) + angle), -tl.load(sin + token * (ROPE // 2) + angle)
    plain, rotated = tl.arange(0, NOPE_LANES), tl.arange(0, ROPE)
    total = tl.zeros((ROPE,), tl.float32)
    for start in tl.static_range(0, H, HEADS):
        head = start + tl.arange(0, HEADS)
        real = (head < H)[:, None]
        inside = real & (plain < NOPE)[None, :]
        place = (token * H + head)[:, None] * WIDTH
        tl.store(q_out + place + plain[None, :], tl.load(of_q + place + plain[None, :], mask=inside), mask=inside)
        k = tl.load(of_k + place + plain[None, :], mask=inside)
        tl.store(kv_out + (token * H + head)[:, None] * KV + plain[None, :], k, mask=inside)
        value = tl.arange(0, V_LANES)
        known = real & (value < KV - NOPE)[None, :]
        v = tl.load(of_v + (token * H + head)[:, None] * (KV - NOPE) + value[None, :], mask=known)
        tl.store(kv_out + (token * H + head)[:, None] * KV + NOPE + value[None, :], v, mask=known)
        place += NOPE + rotated[None, :]
        query = tl.load(of_q + place, mask=real, other=0.0)
        tl.store(q_out + place, _turned(query, c, s, HEADS, ROPE), mask=real)
        total += tl.sum(tl.load(of_k + place, mask=real, other=0.0).to(tl.float32), 0)
    back = _turned(total[None, :], c, s, 1, ROPE)
    tl.store(rope_out + token * ROPE + rotated[None, :], back)
