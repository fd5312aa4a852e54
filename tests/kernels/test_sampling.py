"""Drawing on a GPU: the kernel against the sampler of the engine, and what it writes down."""

import pytest
import torch

from fathom.infer.sampler import draw_each, uniform
from fathom.kernels.sampling import DrawState

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, VOCAB = 24, 300


@pytest.mark.parametrize("seed", range(2))
def test_every_law_draws_the_tokens_of_the_sampler(triton_kernels: None, seed: int) -> None:
    from fathom.kernels.triton.sampling import draw_and_record

    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(ROWS, VOCAB, generator=generator)
    logits[:, 10:20] = logits[:, 10:11]  # of equals the first stay
    temperature = torch.tensor([0.0, 0.7, 1.0, 1.3] * 6)
    top_k, top_p = torch.tensor([0, 0, 5, 1, 40, 0, 7, 12] * 3), torch.tensor([1.0, 0.9, 0.5, 1.0, 0.95, 0.3] * 4)
    min_p = torch.tensor([0.0, 0.0, 0.05] * 8)
    key = torch.randint(-(2**62), 2**62, (ROWS,), generator=generator)
    position = torch.randint(3, 50, (ROWS,), generator=generator)
    uniforms = uniform(key.unsqueeze(1), position.unsqueeze(1) + 1).flatten()
    wanted = draw_each(logits.clone(), uniforms, temperature, top_k, top_p, min_p)

    place, idle = position.int(), 5
    place[idle] = -1
    stops = torch.stack((torch.where(torch.arange(ROWS) < 12, wanted.token, -1), torch.full((ROWS,), -1)))
    last = position + torch.tensor([1, 5] * 12)
    start, token = torch.full((ROWS,), 3), torch.zeros(ROWS, dtype=torch.int64)
    fields = (token, position.clone(), start, last, key, temperature, top_k, top_p, min_p, stops, place)
    tables = torch.full((ROWS, 60), -7), torch.zeros(ROWS, 60)
    state = DrawState(*(each.to(DEVICE) for each in (*fields, *tables)))
    draw_and_record(logits.to(DEVICE), state)

    found = DrawState(*(each.cpu() for each in state))
    drew = torch.arange(ROWS) != idle
    row, column = torch.arange(ROWS)[drew], (position + 1 - 3)[drew]
    assert torch.equal(found.token[drew], wanted.token[drew])
    assert torch.equal(found.tokens[row, column], wanted.token[drew])
    torch.testing.assert_close(found.logprobs[row, column], wanted.logprob[drew], rtol=1e-5, atol=1e-5)
    assert int((found.tokens != -7).sum()) == ROWS - 1  # nothing else is written
    assert torch.equal(found.position, position + drew)
    ended = (torch.arange(ROWS) < 12) | (position + 1 >= last)
    assert torch.equal(found.place[drew], torch.where(ended, -1, position + 1).int()[drew])
