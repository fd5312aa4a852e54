"""Batches that are made in the background are those that would be made on the spot, and their errors arrive."""

import gc
import threading

import numpy as np
import pytest
import torch

from fathom.text.packing import Batch
from fathom.train.ahead import collected_between_steps, fetched_ahead

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def batch_of(step: int, rows: int) -> Batch:
    if step == 9:
        raise ValueError("step 9 has no rows")
    tokens = np.full((rows, 3), step)
    return Batch(tokens, tokens, np.ones((rows, 3), np.float32), tokens, np.zeros_like(tokens))


@pytest.mark.parametrize("device", [GPU, CPU])
def test_every_step_gets_its_batch(device: torch.device) -> None:
    made: list[tuple[int, str]] = []

    def noted(step: int, rows: int) -> Batch:
        made.append((step, threading.current_thread().name))
        return batch_of(step, rows)

    with fetched_ahead(noted, device) as batches:
        for step in range(3):
            assert batches(step, 2 + step).tokens.tolist() == [[step] * 3] * (2 + step)
            batches.begin(step + 1, 3 + step)
    assert {step for step, thread in made if thread.startswith("fathom-batches")} == (
        {1, 2, 3} if device == GPU else set()
    )
    assert sorted(step for step, _ in made) == ([0, 1, 2, 3] if device == GPU else [0, 1, 2])


def test_an_error_of_the_background_is_raised_where_the_batch_is_asked_for() -> None:
    with fetched_ahead(batch_of, GPU) as batches:
        batches.begin(9, 1)
        with pytest.raises(ValueError, match="step 9 has no rows"):
            batches(9, 1)


def test_garbage_waits_for_the_end_of_a_step_and_is_collected_again_behind_the_loop() -> None:
    with collected_between_steps(GPU) as tidy:
        assert not gc.isenabled()
        tidy(1)
    assert gc.isenabled()
    with collected_between_steps(CPU):
        assert gc.isenabled()
