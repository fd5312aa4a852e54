"""What the assembler makes of the Hopper kernels, without a GPU: no spilled register, no product waited for at once."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def reports() -> dict[str, str]:
    """Of every kernel, from a process of its own: what checks shapes or interprets Triton would stand in the way."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("kernel", "spilled"),
    # strips set one address aside before their loop, columns a few of those they need behind their loads
    [("blocks, 128 rows", 0), ("blocks, one group", 0), ("blocks, 192 rows", 0), ("strips", 4), ("columns", 96)],
)
def test_kernels_neither_spill_nor_wait(reports: dict[str, str], kernel: str, spilled: int) -> None:
    assert int(reports[kernel].split(" bytes spill stores")[0].split()[-1]) <= spilled
    assert "C75" not in reports[kernel]


def compile_all() -> dict[str, str]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource
    from triton.experimental.gluon.language import NVMMASharedLayout

    from fathom.kernels.triton import quant, scaled
    from fathom.kernels.triton.quant_kernels import columns_kernel
    from fathom.kernels.triton.scaled_blocks import blocks_kernel
    from fathom.kernels.triton.scaled_strips import strips_kernel

    def descriptor(dtype: str, shape: list[int], swizzle: int, bits: int) -> str:
        return f"tensordesc<{dtype}{shape},{NVMMASharedLayout(swizzle, bits, len(shape))!r}>"

    descriptors = {
        "a_desc": descriptor("fp8e4nv", [64, 128], 128, 8),
        "b_desc": descriptor("fp8e4nv", [128, 128], 128, 8),
        "s_desc": descriptor("fp32", [64], 0, 32),
        "offsets": "*i32",
    }

    def assemble(kernel: Any, types: dict[str, str], constants: dict[str, Any], **options: int) -> str:
        """The report of ptxas -v."""
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
        places = {(names.index(name),): value for name, value in constants.items()}
        aligned = [
            i for i, name in enumerate(names) if signature[name].startswith("*") or "stride" in name or name == "width"
        ]
        source = GluonASTSource(kernel, signature, places, {(i,): [["tt.divisibility", 16]] for i in aligned})
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as ptx:
            ptx.write(compiled.asm["ptx"])
            ptx.flush()
            ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
            command = [str(ptxas), "-v", "-arch=sm_90a", ptx.name, "-o", "/dev/null"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    blocks = descriptors | {
        "q_desc": descriptor("fp32", [4], 0, 32),
        "out_desc": descriptor("bf16", [64, 128], 128, 16),
        "out_ptr": "*bf16",
    }

    def with_blocks(tiling: scaled.Tiling, **constants: int) -> str:
        constants |= {"READERS": tiling.readers, "STAGES": tiling.stages, "BAND": 8, "REGISTERS": tiling.registers}
        return assemble(blocks_kernel, blocks, constants, num_warps=4, maxnreg=tiling.limit)

    strips = descriptors | {
        "q_desc": descriptor("fp32", [128], 0, 32),
        "out_desc": descriptor("fp32", [64, 128], 128, 32),
        "out_ptr": "*fp32",
    }
    columns = {"x": "*bf16", "codes": "*fp8e4nv", "scales": "*fp32", "codes_t": "*fp8e4nv", "scales_t": "*fp32"}
    columns |= {"offsets": "*i32", "floor": "fp32"}
    outer = {"STAGES": 4, "BAND": 8, "REGISTERS": 232}
    tile = {"GROUP_LANES": 64, "ROWS": True, "POWER_OF_TWO": False}
    return {
        "blocks, 128 rows": with_blocks(scaled.SMALL),
        "blocks, one group": with_blocks(scaled.SMALL, groups=1),
        "blocks, 192 rows": with_blocks(scaled.TALL),
        "strips": assemble(strips_kernel, strips, outer, num_warps=4, maxnreg=168),
        "columns": assemble(columns_kernel, columns, tile, num_warps=8, maxnreg=quant.REGISTERS),
    }


if __name__ == "__main__":
    print(json.dumps(compile_all()))
