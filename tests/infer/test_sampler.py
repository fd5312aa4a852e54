import math

import pytest
import torch

from fathom.infer.sampler import draw, draw_each, invert, likeliest, stream_key, truncate, uniform

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0, 1.5, 0.2])
DRAWS = 100_000


def splitmix64(state: int) -> int:
    """The published generator's next output from `state`, in Python's own integers."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def uniforms(count: int) -> torch.Tensor:
    """Numbers of many seeds, samples and positions."""
    index = torch.arange(count)
    key = stream_key(index // 64 % 16, index // 1024)
    return uniform(key.unsqueeze(1), (index % 64).unsqueeze(1)).squeeze(1)


def assert_follows(tokens: torch.Tensor, law: torch.Tensor) -> None:
    """Pearson's chi-square, within five standard deviations of its mean; nothing impossible is drawn."""
    counts = torch.bincount(tokens, minlength=len(law)).double()
    assert counts[law == 0].sum() == 0
    possible = law > 0
    expected = law[possible].double() / law.sum() * len(tokens)
    freedom = int(possible.sum()) - 1
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    assert statistic <= freedom + 5 * math.sqrt(2 * freedom)


def test_the_hash_is_splitmix64() -> None:
    seed, sample, position = 123456789, 3, 17
    key = splitmix64(splitmix64(seed) + sample * 0x9E3779B97F4A7C15 - 0x9E3779B97F4A7C15)
    expected = splitmix64(key + position * 0x9E3779B97F4A7C15 - 0x9E3779B97F4A7C15) >> 11
    found = uniform(stream_key(torch.tensor([seed]), torch.tensor([sample])).unsqueeze(1), torch.tensor([[position]]))
    assert found.item() == expected * 2.0**-53


def test_numbers_are_uniform_and_their_neighbours_strangers() -> None:
    numbers = uniforms(1 << 17)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert_follows((numbers * 100).long(), torch.ones(100))
    for lag in (1, 64, 1024):  # the next position, seed and sample
        pairs = (numbers[:-lag] * 10).long() * 10 + (numbers[lag:] * 10).long()
        assert_follows(pairs, torch.ones(100))
    assert len(numbers.unique()) == len(numbers)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_draws_follow_softmax(temperature: float) -> None:
    law = (LOGITS / temperature).softmax(-1)
    drawn = draw(LOGITS.repeat(DRAWS, 1), uniforms(DRAWS), temperature)
    assert_follows(drawn.token, law)
    torch.testing.assert_close(drawn.logprob, law.log()[drawn.token])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p", "kept"),
    [
        (1.0, 3, 1.0, 0.0, [0, 7, 1]),
        (0.7, 0, 0.75, 0.0, [0, 7, 1]),  # the two likeliest hold 0.736
        (1.0, 4, 0.85, 0.0, [0, 7, 1]),  # 0.749 of all, but 0.899 of the four likeliest
        (1.0, 1, 1.0, 0.0, [0]),
        (1.0, 0, 0.0, 0.0, [0]),
        (1.0, 0, 1.0, 0.3, [0, 7, 1]),  # e^-0.5, e^-1 and e^-1.5 of the likeliest: 0.61, 0.37, 0.22
        (2.0, 0, 1.0, 0.3, [0, 7, 1, 2, 8, 3]),
        (1.0, 2, 1.0, 0.3, [0, 7]),
        (1.0, 0, 0.51, 0.3, [0, 7]),  # the likeliest holds 0.506 of the three that are left, 0.396 of all
        (1.0, 0, 0.5, 0.3, [0]),
        (1.0, 0, 1.0, 1.0, [0]),
    ],
)
def test_truncated_draws_follow_what_is_left(
    temperature: float, top_k: int, top_p: float, min_p: float, kept: list[int]
) -> None:
    law = (LOGITS / temperature).softmax(-1)
    left = torch.zeros_like(law)
    left[kept] = law[kept]
    each = (torch.full((DRAWS,), number) for number in (temperature, top_k, top_p, min_p))
    drawn = draw_each(LOGITS.repeat(DRAWS, 1), uniforms(DRAWS), *each)
    assert_follows(drawn.token, left)
    torch.testing.assert_close(drawn.logprob, law.log()[drawn.token])  # nothing truncated


def test_edited_logits_are_drawn_from_and_truncated_but_the_logprobs_are_the_models() -> None:
    edited = LOGITS + torch.tensor([-torch.inf, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, -1.0, 1.0])
    law = (edited / 0.8).softmax(-1)
    left = torch.where(law >= law.topk(3).values[-1], law, 0.0)
    each = (torch.full((DRAWS,), number) for number in (0.8, 3, 1.0, 0.0))
    drawn = draw_each(LOGITS.repeat(DRAWS, 1), uniforms(DRAWS), *each, edited.repeat(DRAWS, 1))
    assert_follows(drawn.token, left)
    torch.testing.assert_close(drawn.logprob, (LOGITS / 0.8).log_softmax(-1)[drawn.token])


def test_the_logprob_of_a_token_too_rare_for_float32_is_finite() -> None:
    logits, forced = torch.tensor([[0.0, -500.0]]), torch.tensor([[-torch.inf, 0.0]])
    each = (torch.tensor([number]) for number in (1.0, 0, 1.0, 0.0))
    drawn = draw_each(logits, uniforms(1), *each, forced)
    assert (drawn.token.item(), drawn.logprob.item()) == (1, -500.0)


def test_rows_of_unequal_laws_draw_as_they_would_alone() -> None:
    logits = torch.randn(300, 70, generator=torch.Generator().manual_seed(0))
    temperature = torch.tensor([0.0, 0.7, 1.0]).repeat(100)
    top_k, top_p = torch.tensor([0, 0, 0, 5]).repeat(75), torch.tensor([1.0, 1.0, 0.6, 1.0, 1.0]).repeat(60)
    numbers = uniforms(300)
    together = draw_each(logits.clone(), numbers, temperature, top_k, top_p, torch.zeros(300))
    plain = (top_k == 0) & (top_p == 1)
    for value in (0.7, 1.0):
        rows = plain & (temperature == value)
        alone = draw(logits[rows], numbers[rows], value)
        assert torch.equal(together.token[rows], alone.token) and torch.equal(together.logprob[rows], alone.logprob)
    greedy = likeliest(logits[temperature == 0])
    assert torch.equal(together.token[temperature == 0], greedy.token)
    assert torch.equal(together.logprob[temperature == 0], greedy.logprob)


def test_the_likeliest_token_is_the_first_of_equals_with_its_logprob() -> None:
    choice = likeliest(torch.tensor([[0.0, math.log(3), math.log(3), 0.0]]))
    assert choice.token.tolist() == [1]
    assert choice.logprob.tolist() == pytest.approx([math.log(3 / 8)])


def test_truncation_keeps_k_tokens_and_the_first_of_equals() -> None:
    probability = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2], [0.1, 0.4, 0.1, 0.3, 0.1], [0.1, 0.4, 0.1, 0.3, 0.1]])
    left = truncate(probability, torch.tensor([2, 0, 0]), torch.tensor([1.0, 0.69, 1.0]), torch.zeros(3))
    torch.testing.assert_close(
        left, torch.tensor([[0.2, 0.2, 0, 0, 0], [0, 0.4, 0, 0.3, 0], [0.1, 0.4, 0.1, 0.3, 0.1]])
    )


@pytest.mark.parametrize("width", [3, 64, 200, 1536])
def test_inversion_finds_the_first_sum_above_the_number(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    weights = torch.rand(500, width, generator=generator) ** 8
    numbers = torch.rand(500, dtype=torch.float64, generator=generator)
    sums = weights.double().cumsum(-1)
    goal = numbers.unsqueeze(1) * sums[:, -1:]
    found = invert(weights, numbers)
    before = torch.where(found > 0, sums.gather(1, (found - 1).clamp(min=0).unsqueeze(1)).squeeze(1), 0.0)
    after = sums.gather(1, found.unsqueeze(1)).squeeze(1)
    slack = 1e-6 * sums[:, -1]  # blocks are summed in float32
    assert bool(((before <= goal.squeeze(1) + slack) & (goal.squeeze(1) <= after + slack)).all())


def test_inversion_never_finds_weight_zero() -> None:
    weights = torch.zeros(4, 200)
    weights[:, 70], weights[:, 130] = 0.25, 0.75
    numbers = torch.tensor([0.0, 0.2499, 0.2501, 1 - 2.0**-53], dtype=torch.float64)
    assert invert(weights, numbers).tolist() == [70, 70, 130, 130]
