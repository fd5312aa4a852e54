"""Tokens that travel to their experts against all experts on one process: counts of every kind, groups, FP8, bytes."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.config import ParallelConfig
from fathom.kernels.grouped import grouped_swiglu
from fathom.kernels.router import choose_experts
from fathom.parallel.experts import through_experts
from fathom.parallel.mesh import build_mesh
from fathom.parallel.world import World, launch

E, D, M, K = 8, 160, 8, 3  # two strips a row, the second one short


def weights(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(E, 2 * M, D, generator=generator), torch.randn(E, D, M, generator=generator)


def routes(case: str, rank: int) -> Tensor:
    """(N, K) experts of this rank's tokens."""
    generator = torch.Generator().manual_seed(rank)
    scores = torch.rand(12, E, generator=generator)
    match case:
        case "any":
            return scores.topk(K).indices
        case "one expert":
            return torch.full((12, 1), 5)
        case "all on the last process":
            return torch.arange(4, 4 + K).expand(12, K)
        case "no tokens on the first process":
            return scores.topk(K).indices[: 12 * rank]
        case _:  # two groups, of which a token reaches one
            return choose_experts(scores, K, n_group=2, topk_group=1)


CASES = ("any", "one expert", "all on the last process", "no tokens on the first process", "one group of two")


def run(world: World, case: str, fp8: bool = False) -> dict[str, Any]:
    """Results and gradients of both ways, what was sent, and the loads of one rank."""
    experts = routes(case, world.rank)
    generator = torch.Generator().manual_seed(10 + world.rank)
    x = torch.randn(len(experts), D, generator=generator)
    gates = torch.rand(experts.shape, generator=generator)
    grad = torch.randn(len(experts), D, generator=generator)
    gate_up, down = weights(torch.Generator().manual_seed(99))
    axis = world.mesh.expert
    found: dict[str, Any] = {"experts": experts}
    for way in ("spread", "whole"):
        own = slice(4 * axis.rank, 4 * axis.rank + 4) if way == "spread" else slice(None)
        leaves = [t.clone().requires_grad_() for t in (x, gates, gate_up[own], down[own])]
        if way == "spread":
            before = axis.sent.copy()
            apply = partial(_apply, leaves[2], leaves[3])
            out = through_experts(leaves[0], experts, leaves[1], E, axis, apply, fp8)
        else:
            out = grouped_swiglu(leaves[0], experts, *leaves[1:])
        (out * grad).sum().backward()
        gradients = [leaf.grad for leaf in leaves]
        if way == "whole":  # every process's tokens reach the experts of all
            for gradient in gradients[2:]:
                axis.sum([gradient])
            gradients[2:] = [g[4 * axis.rank : 4 * axis.rank + 4] for g in gradients[2:]]
        found[way] = [out.detach(), *gradients]
        if way == "spread":
            found["sent"] = {kind: axis.sent[kind] - before[kind] for kind in axis.sent}
    return found


def _apply(gate_up: Tensor, down: Tensor, rows: Tensor, experts: Tensor, shares: Tensor) -> Tensor:
    return grouped_swiglu(rows, experts, shares, gate_up, down, some_elsewhere=True)


def everything(world: World) -> list[object]:
    spread = World(world.rank, 2, world.device, build_mesh(ParallelConfig(expert=2), 2, world.device))
    found = {case: run(spread, case) for case in CASES} | {"fp8": run(spread, "any", fp8=True)}
    return world.gather(found)


@pytest.fixture(scope="module")
def pair() -> list[dict[str, Any]]:
    return launch(2, "cpu", everything)


@pytest.mark.ranks
@pytest.mark.parametrize("case", CASES)
def test_tokens_that_travel_find_what_all_experts_on_one_process_say(case: str, pair: list[dict[str, Any]]) -> None:
    for rank in pair:
        for found, wanted in zip(rank[case]["spread"], rank[case]["whole"], strict=True):
            assert found.shape == wanted.shape
            if wanted.numel():
                assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.ranks
@pytest.mark.parametrize("case", CASES)
def test_what_is_sent_is_each_token_once_to_each_process_of_its_experts(case: str, pair: list[dict[str, Any]]) -> None:
    copies = []
    for number, rank in enumerate(pair):
        homes = rank[case]["experts"] // 4
        copies.append(sum(1 - number in row for row in homes.tolist()))
    for number, rank in enumerate(pair):
        sent, away, back = rank[case]["sent"], copies[number], copies[1 - number]
        assert sent["dispatch"] == sent["combine gradient"] == away * D * 4
        assert sent["combine"] == sent["dispatch gradient"] == back * D * 4


@pytest.mark.ranks
def test_with_groups_of_one_process_a_token_reaches_no_more_processes_than_groups(pair: list[dict[str, Any]]) -> None:
    for rank in pair:
        homes = rank["one group of two"]["experts"] // 4
        assert all(len(set(row)) == 1 for row in homes.tolist())
        assert any(len(set(row)) == 2 for row in (rank["any"]["experts"] // 4).tolist())


@pytest.mark.ranks
def test_in_fp8_tokens_take_a_quarter_of_the_bytes_and_lose_a_sixteenth_at_most(pair: list[dict[str, Any]]) -> None:
    for rank in pair:
        found, plain = rank["fp8"], rank["any"]
        sent, wide = found["sent"], plain["sent"]
        assert sent["dispatch"] * (4 * D) == wide["dispatch"] * (D + 4 * 2)  # codes and two scales a row
        for kind in ("combine", "dispatch gradient", "combine gradient"):
            assert sent[kind] == wide[kind]
        for name, a, b in zip(("out", "x", "gates", "gate_up", "down"), found["spread"], plain["spread"], strict=True):
            error = float((a - b).norm() / b.norm())
            # each number keeps three bits, so it is off by 1/16 at most; the gates' gradient multiplies two such sums
            assert 1e-3 < error < (0.08 if name == "gates" else 0.0625), (name, error)
