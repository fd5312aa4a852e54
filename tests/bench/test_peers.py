"""Which peer a bench takes, and which of its settings."""

import time

import pytest
import torch

from fathom.bench.peers import fastest, require_peer
from fathom.bench.rounds import summarize
from fathom.cli import main
from fathom.parallel.world import World


def test_a_missing_peer_is_named_with_its_extra() -> None:
    with pytest.raises(ValueError, match=r"absent_library is not installed.*pip install 'fathomlm\[peers\]'"):
        require_peer("train", "absent_library", "absent_library")
    require_peer("train", "none", "absent_library")


@pytest.mark.parametrize(
    ("bench", "peer", "known"),
    [("train", "trl", "transformers"), ("decode", "trl", "transformers"), ("rollout", "transformers", "trl")],
)
def test_a_peer_that_a_bench_does_not_know(
    bench: str, peer: str, known: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", bench, "--peer", peer]) == 2
    assert f"fathom bench {bench} has no peer {peer}; give --peer {known}" in capsys.readouterr().err


def test_fastest_takes_the_least_time() -> None:
    pauses = {"slow": 0.02, "quick": 0.001, "slower": 0.03}
    world = World(0, 1, torch.device("cpu"))
    assert fastest(list(pauses), lambda name: time.sleep(pauses[name]), world) == "quick"


def test_the_summary_is_of_medians_against_the_best_peer() -> None:
    speeds = {
        "fathom, 2 x 1": [30.0, 10.0, 20.0],
        "fathom, 1 x 1": [5.0, 6.0, 7.0],
        "peer, 1 x 2": [9.0, 10.0, 11.0],
        "peer, 2 x 1": [40.0, 1.0, 2.0],
    }
    assert summarize(speeds, "fathom") == {
        "tokens_per_s": {"fathom, 2 x 1": 20, "fathom, 1 x 1": 6, "peer, 1 x 2": 10, "peer, 2 x 1": 2},
        "best_peer": "peer, 1 x 2",
        "ratio": 2.0,
        "ratio_of_fastest_rounds": 0.75,
    }
    assert summarize({"fathom, 2 x 1": [1.0, 2.0, 3.0]}, "fathom") == {"tokens_per_s": {"fathom, 2 x 1": 2}}
