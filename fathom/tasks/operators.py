"""Operators that the kernel task poses: a definition in torch, and a Triton program that computes it.

An operator is a core, such as a softmax over rows, an activation after it, and a factor. All three make its key, sizes
do not: an operator held out is never seen in training, at any size.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Core:
    """What is computed before the activation."""

    inputs: Mapping[str, str]  # name -> its dimensions, among M, N and K
    output: str  # dimensions
    definition: str  # an expression in torch
    row: str = ""  # lines of Triton that make `z` of one row of `cols` columns; empty for the matrix product


MASKED = "z = tl.where(inside, x, float('-inf'))\n"

CORES: Mapping[str, Core] = {
    "map": Core({"x": "MN"}, "MN", "x", "z = x"),
    "add": Core({"x": "MN", "y": "MN"}, "MN", "x + y", "z = x + y"),
    "multiply-add": Core({"x": "MN", "y": "MN", "w": "MN"}, "MN", "x * y + w", "z = x * y + w"),
    "add to columns": Core({"x": "MN", "b": "N"}, "MN", "x + b", "z = x + b"),
    "scale rows": Core({"x": "MN", "s": "M"}, "MN", "x * s[:, None]", "z = x * s"),
    "transpose": Core({"x": "MN"}, "NM", "x.T", "z = x"),
    "sum": Core({"x": "MN"}, "M", "x.sum(1)", "z = tl.sum(x, 0)"),
    "maximum": Core({"x": "MN"}, "M", "x.amax(1)", MASKED + "z = tl.max(z, 0)"),
    "softmax": Core(
        {"x": "MN"},
        "MN",
        "torch.softmax(x, 1)",
        MASKED + "z = tl.exp(z - tl.max(z, 0))\nz = z / tl.sum(z, 0)",
    ),
    "rmsnorm": Core(
        {"x": "MN", "w": "N"},
        "MN",
        "x * torch.rsqrt((x * x).mean(1, keepdim=True) + 1e-6) * w",
        "z = x * tl.rsqrt(tl.sum(x * x, 0) / N + 1e-6) * w",
    ),
    "layernorm": Core(
        {"x": "MN", "w": "N", "b": "N"},
        "MN",
        "torch.nn.functional.layer_norm(x, x.shape[1:], w, b, 1e-5)",
        "z = tl.where(inside, x - tl.sum(x, 0) / N, 0.0)\nz = z * tl.rsqrt(tl.sum(z * z, 0) / N + 1e-5) * w + b",
    ),
    "matmul": Core({"x": "MK", "y": "KN"}, "MN", "x @ y"),
}

# name -> the activation of z in torch, and in Triton
ACTIVATIONS: Mapping[str, tuple[str, str]] = {
    "none": ("z", "z"),
    "relu": ("torch.relu(z)", "tl.maximum(z, 0.0)"),
    "gelu": ("torch.nn.functional.gelu(z)", "0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))"),
    "silu": ("torch.nn.functional.silu(z)", "z * tl.sigmoid(z)"),
    "square": ("z * z", "z * z"),
}
FACTORS = (0.25, 0.5, 1.0, 2.0, 3.0, -1.0)


@dataclass(frozen=True)
class Operator:
    """One operator."""

    core: str
    activation: str
    factor: float

    @property
    def name(self) -> str:
        """What the key is the hash of."""
        return f"kernel {self.core}, {self.activation}, {self.factor:g}"

    @property
    def definition(self) -> str:
        """A function of torch, as text."""
        core = CORES[self.core]
        activation, _ = ACTIVATIONS[self.activation]
        return (
            f"def definition({', '.join(core.inputs)}):\n"
            f"    z = {core.definition}\n"
            f"    return {self.factor:g} * ({activation})\n"
        )

    @property
    def solution(self) -> str:
        """A right program, plain rather than fast: one row, or one tile of a product, for each instance."""
        return _product(self) if self.core == "matmul" else _rows(self)


_HEAD = "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"

_TILES = """def kernel(x, y, out, M, N, K: tl.constexpr, TILE: tl.constexpr):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    cols = tl.program_id(1) * TILE + tl.arange(0, TILE)
    z = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, K, TILE):
        inner = start + tl.arange(0, TILE)
        left = tl.load(x + rows[:, None] * K + inner[None, :], (rows[:, None] < M) & (inner[None, :] < K), 0.0)
        right = tl.load(y + inner[:, None] * N + cols[None, :], (inner[:, None] < K) & (cols[None, :] < N), 0.0)
        z += tl.dot(left, right, input_precision="ieee")
    z = RESULT
    tl.store(out + rows[:, None] * N + cols[None, :], z, (rows[:, None] < M) & (cols[None, :] < N))


def run(x, y, out):
    M, K = x.shape
    N = y.shape[1]
    kernel[(triton.cdiv(M, 32), triton.cdiv(N, 32))](x, y, out, M, N, K, TILE=32)
"""


def _product(operator: Operator) -> str:
    return _HEAD + _TILES.replace("RESULT", _result(operator))


def _rows(operator: Operator) -> str:
    core = CORES[operator.core]
    names = ", ".join(core.inputs)
    places = {"MN": "row * N + cols, inside, 0.0", "N": "cols, inside, 0.0", "M": "row"}
    body = [f"{name} = tl.load({name}_ptr + {places[dims]})" for name, dims in core.inputs.items()]
    store = {"MN": "row * N + cols, z, inside", "NM": "cols * M + row, z, inside", "M": "row, z"}[core.output]
    body += [*core.row.splitlines(), f"z = {_result(operator)}", f"tl.store(out_ptr + {store})"]
    pointers = ", ".join(f"{name}_ptr" for name in (*core.inputs, "out"))
    return (
        f"{_HEAD}def kernel({pointers}, M, N, BLOCK: tl.constexpr):\n"
        "    row = tl.program_id(0)\n"
        "    cols = tl.arange(0, BLOCK)\n"
        "    inside = cols < N\n"
        + "".join(f"    {line}\n" for line in body)
        + f"\n\ndef run({names}, out):\n"
        + "    M, N = x.shape\n"
        + f"    kernel[(M,)]({names}, out, M, N, BLOCK=triton.next_power_of_2(N))\n"
    )


def _result(operator: Operator) -> str:
    return f"{operator.factor:g} * ({ACTIVATIONS[operator.activation][1]})"
