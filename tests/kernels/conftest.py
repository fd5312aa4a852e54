"""Triton's kernels without a GPU."""

from typing import Any

import pytest
import torch


@pytest.fixture
def triton_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets kernels be called: compiled where there is a GPU, else as Triton's interpreter runs them."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        from triton.runtime import interpreter

        patch = interpreter._patch_lang_tensor

        def with_index(tensor: Any, scope: Any) -> None:  # NumPy >= 2.4 makes no int of an array of one element
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

        monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_index)
