"""Runs a Triton program against its definition; a script of the isolated child, which nothing imports.

It reads one JSON object and writes a line as soon as it can begin, then a line with the verdict: whether every output
was right and, on a GPU, how many times faster than torch the program was. The definition is computed after the program
has ended, in float64, from copies that the program never saw.
"""

import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton  # noqa: F401 # pyright: ignore[reportUnusedImport] # so that no program is blamed for its absence
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # torch's documented way to see every call of an operator

TOLERANCE = 1e-4  # of the outputs' root mean square
MARGIN = 64  # numbers before and behind an output that must stay untouched
ROUNDS = 20  # of timing; their median counts
# memory, and the interpreter's own traffic between devices: nothing here computes
ALLOWED = ("aten.empty", "aten.new_empty", "aten.set_", "aten.copy_", "aten.detach", "aten.alias", "aten.view")


class OnlyMemory(TorchDispatchMode):
    """Refuses operators of torch: the work has to be done by kernels."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rpartition(".")[0]
        if name not in ALLOWED and not name.startswith("aten.empty"):
            raise RuntimeError(f"the program calls {name} of torch")
        return func(*args, **(kwargs or {}))


def judge(asked: Mapping[str, Any], run: Callable[..., object]) -> dict[str, Any]:
    """The verdict on `run`."""
    scope: dict[str, Any] = {"torch": torch}
    exec(asked["definition"], scope)  # Fathom's own text
    definition, device = scope["definition"], asked["device"]
    drawn = torch.Generator(device).manual_seed(asked["seed"])
    for sizes in asked["sizes"]:
        inputs = [draw(asked["inputs"][name], sizes, drawn) for name in asked["inputs"]]
        if not is_right(run, definition, inputs, [sizes[dim] for dim in asked["output"]]):
            return {"right": False}
    return {"right": True} if device == "cpu" else speed(asked, run, definition, drawn)


def draw(dims: str, sizes: Mapping[str, int], drawn: torch.Generator) -> Tensor:
    """A normal tensor of the dimensions."""
    return torch.randn([sizes[dim] for dim in dims], generator=drawn, device=drawn.device)


def is_right(
    run: Callable[..., object], definition: Callable[..., Tensor], inputs: Sequence[Tensor], shape: Any
) -> bool:
    """Whether one call fills its output, and nothing around it, with what the definition says."""
    kept = [each.double() for each in inputs]
    whole, out = guarded(shape, inputs[0])
    with OnlyMemory():
        run(*inputs, out)
    return matches(whole, out, definition(*kept))


def guarded(shape: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """A buffer of NaN, and the output in its middle."""
    count = torch.Size(shape).numel()
    whole = torch.full((count + 2 * MARGIN,), float("nan"), device=like.device)
    return whole, whole[MARGIN : MARGIN + count].view(*shape)


def matches(whole: Tensor, out: Tensor, wanted: Tensor) -> bool:
    """Within the tolerance everywhere, NaN nowhere, margins untouched."""
    if out.is_cuda:
        torch.cuda.synchronize()
    clean = bool(whole[:MARGIN].isnan().all() and whole[-MARGIN:].isnan().all())
    rms = float(wanted.pow(2).mean().sqrt())
    return clean and bool(((out.double() - wanted).abs() <= TOLERANCE * rms).all())


def speed(asked: Mapping[str, Any], run: Any, definition: Any, drawn: torch.Generator) -> dict[str, Any]:
    """How many times faster than torch, on a large size; inputs are new in every round, and every output is judged."""
    sizes, ours, theirs = asked["large"], list[float](), list[float]()
    for _ in range(ROUNDS):
        inputs = [draw(dims, sizes, drawn) for dims in asked["inputs"].values()]
        kept = [each.clone() for each in inputs]
        whole, out = guarded([sizes[dim] for dim in asked["output"]], inputs[0])
        with OnlyMemory():
            ours.append(timed(run, [*inputs, out]))
        theirs.append(timed(definition, kept))
        if not matches(whole, out, definition(*(each.double() for each in kept))):
            return {"right": False}
    return {"right": True, "speed_up": statistics.median(theirs) / statistics.median(ours)}


def timed(call: Callable[..., object], arguments: Sequence[Tensor]) -> float:
    """Milliseconds of one call on every stream of the device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call(*arguments)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def load(path: str) -> Any:
    """The program's launcher."""
    spec = importlib.util.spec_from_file_location("program", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.run


def main() -> None:
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    if asked["device"] == "cuda":
        torch.zeros(1, device="cuda")  # a device that is missing is no fault of the program
    said.write("begun\n")
    said.flush()
    try:
        verdict = judge(asked, load(os.path.join(os.path.dirname(os.path.abspath(__file__)), "program.py")))
    except Exception as error:  # whatever a program raises makes it wrong
        verdict = {"right": False, "error": f"{type(error).__name__}: {error}"[:300]}
    said.write(json.dumps(verdict))
    said.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
