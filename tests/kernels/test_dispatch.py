"""Which self of an operation is called."""

import subprocess
import sys

import pytest
import torch

from fathom.kernels.dispatch import twin

CALL = """
import sys, torch
from fathom.kernels.attention import paged_latent_attention
q, pages = torch.randn(1, 1, 2, 6), torch.randn(2, 4, 6)
paged_latent_attention(q, pages, torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32), 4, 1.0)
sys.exit(any(name.startswith("fathom.kernels.triton") for name in sys.modules))
"""


def test_a_cpu_never_imports_the_twin() -> None:
    assert subprocess.run([sys.executable, "-c", CALL], timeout=60).returncode == 0


def test_the_choice_can_be_compiled() -> None:
    @twin
    def double(x: torch.Tensor) -> torch.Tensor:
        """Twice."""
        return x * 2

    compiled = torch.compile(double, backend="eager", fullgraph=True)
    assert compiled(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert double.__doc__ == "Twice."


@pytest.mark.gpu
def test_a_gpu_calls_the_twin() -> None:
    from fathom.kernels import attention
    from fathom.kernels.triton import attention as faster

    called = []
    honest, faster.attention_of_any = faster.attention_of_any, lambda *args: called.append(args) or honest(*args)
    try:
        q, pages = torch.randn(1, 1, 2, 48, device="cuda"), torch.randn(2, 16, 48, device="cuda")
        table, length = torch.zeros(1, 1, dtype=torch.int32).cuda(), torch.ones(1, dtype=torch.int32).cuda()
        out = attention.paged_latent_attention(q, pages, table, length, 32, 1.0)
    finally:
        faster.attention_of_any = honest
    assert len(called) == 1
    torch.testing.assert_close(out[0, 0], pages[0, 0, :32].expand(2, 32))
