"""What ptxas makes of the Hopper kernels, which needs no GPU: no spills, and products that stay asynchronous."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = """
import sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from fathom.kernels.triton.attention_few import attend_few
from fathom.kernels.triton.attention_many import attend_many
from fathom.kernels.triton.attention_packed import FIELD, PANEL, attend_packed
from fathom.kernels.triton.attention_tiles import BLOCK, PANEL as WIDE

def tile(dtype, columns, swizzle, bits):
    return f"tensordesc<{dtype}[{BLOCK}, {columns}],{gl.NVMMASharedLayout(swizzle, bits, 2)!r}>"

def write(name, kernel, rank, rope, queries, limit, tiles, **fixed):
    fixed |= dict(PAGE=64, RANK=rank, ROPE=rope, QUERIES=queries, BLOCK=BLOCK)
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(["q"], "*bf16") | dict.fromkeys(["lse"], "*fp32")
    types |= dict.fromkeys(["table", "length"], "*i32")
    types |= dict(factor="fp32", out="*fp32" if fixed["SPLIT"] else "*bf16")
    types |= tiles | dict.fromkeys(fixed, "constexpr")
    places = {name: place for place, name in enumerate(kernel.arg_names)}
    constants = {(places[name],): value for name, value in fixed.items()}
    aligned = {(places[name],): [["tt.divisibility", 16]] for name, kind in types.items() if kind[0] == "*"}
    source = GluonASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=4, maxnreg=limit))
    assert made.metadata.shared <= 227 * 1024, f"{name} needs {made.metadata.shared} bytes of shared memory"
    (Path(sys.argv[1]) / f"{name}.ptx").write_text(made.asm["ptx"])

for rank, split in ((512, True), (256, False)):
    ropes = tile("bf16", 64, 128, 16)
    plain = dict(halves=tile("bf16", rank // 2, 128, 16), ropes=ropes)
    coded = dict(codes=tile("fp8e4nv", PANEL, 128, 8), ropes=ropes, units=tile("fp32", FIELD, 0, 32))
    write(f"few-{rank}", attend_few, rank, 64, 16, 128, plain, PANEL=WIDE, SPLIT=split)
    write(f"many-{rank}", attend_many, rank, 64, 64, 168, plain, PANEL=WIDE, SPLIT=split)
    write(f"packed-{rank}", attend_packed, rank, 64, 16, 128, coded, PANEL=PANEL, FIELD=FIELD, SPLIT=split)
plain["halves"] = tile("bf16", 256, 128, 16)
write("few-drafts", attend_few, 512, 64, 32, 168, plain, PANEL=WIDE, SPLIT=True)
"""


@pytest.mark.slow
def test_no_kernel_spills_or_waits_for_its_products(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    subprocess.run([sys.executable, "-c", COMPILE, str(tmp_path)], env=environment, check=True)
    kernels = sorted(tmp_path.glob("*.ptx"))
    assert len(kernels) == 7
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    for kernel in kernels:
        command = [ptxas, "-v", "-arch=sm_90a", kernel, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        assert "0 bytes spill stores, 0 bytes spill loads" in said, (kernel.name, said)
        assert "wgmma" not in said, (kernel.name, said)  # "serialized": the products of one tile wait for each other
        assert "ignored" not in said, (kernel.name, said)
