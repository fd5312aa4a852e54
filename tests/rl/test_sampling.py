"""Rounds of sampling: what is graded beside it, cut at its tail, drafted, replayed, and how far training is from it."""

import copy
import time
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch

from fathom.config import GRPOConfig, ObjectiveConfig, SamplingConfig
from fathom.infer.engine import Engine
from fathom.infer.request import Request
from fathom.model.moe import moe_layers
from fathom.parallel.world import World
from fathom.rl.loop import train_grpo, update
from fathom.rl.reference import Reference
from fathom.rl.rollout import Rollout, roll_out
from fathom.rl.sampling import Answer, sample_round
from fathom.runs import Run
from fathom.text.chat import render_prompt
from fathom.train.loop import Place
from fathom.train.step import TrainState

KEEP_ALL = ObjectiveConfig(drop_equal_groups=False)
WORLD = World(0, 1, torch.device("cpu"))


def asked(policy, count: int = 3, most: int = 14) -> list[Request]:
    questions = ["1,2:3", "4,5:9", "7,8:15"][:count]
    sampling = SamplingConfig(max_tokens=most)
    stops = policy.tokenizer.stop_ids
    return [
        Request(render_prompt(policy.tokenizer, question), sampling, seed, stops, n=4)
        for seed, question in enumerate(questions)
    ]


def sample(policy, model=None, **changes) -> Rollout:
    config = replace(policy.config, **changes)
    engine = Engine(model or policy.model, rows=3 * config.group, drafts="auto" if config.drafts == "auto" else 0)
    return roll_out(engine, policy.task, policy.tokenizer, config, 3, 0, "0/0/0")


def updated(policy, rollout: Rollout, path: Path, **changes) -> dict[str, object]:
    config: GRPOConfig = replace(policy.config, **changes)
    model = copy.deepcopy(policy.model)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return update(Place(Run(path), "grpo", WORLD), config, state, Reference(state, config), rollout)


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_and_their_order_are_those_of_generate(policy, threads: int) -> None:
    requests = asked(policy)
    plain = Engine(policy.model, rows=12).generate(requests)

    def slow_for_some(place: int, answer: Answer) -> tuple[int, list[int], list[float]]:
        time.sleep(0.02 * (answer.whole.sample % 2))
        return place, answer.whole.tokens, answer.whole.logprobs

    found = sample_round(Engine(policy.model, rows=12), requests, slow_for_some, threads=threads)
    assert found.results == [[(place, p.tokens, p.logprobs) for p in group] for place, group in enumerate(plain)]
    assert (found.cut, found.unbegun) == (0, 0)


def test_a_check_is_made_while_other_answers_are_still_drawn(policy, monkeypatch) -> None:
    """The first check holds until a decoding step has begun behind it, which only overlap can bring."""
    begun, stepped = Event(), Event()
    engine = Engine(policy.model, rows=12)
    step = engine.step

    def watched():
        if begun.is_set():
            stepped.set()
        pieces = step()
        if any(piece.finish for piece in pieces):
            begun.wait(30)
        return pieces

    def check(place: int, answer: Answer) -> bool:
        begun.set()
        return stepped.wait(30)

    monkeypatch.setattr(engine, "step", watched)
    lengths = {len(p.tokens) for group in Engine(policy.model, rows=12).generate(asked(policy)) for p in group}
    assert len(lengths) > 1  # so that some answer ends before another
    assert all(all(group) for group in sample_round(engine, asked(policy), check).results)


def test_what_a_check_raises_ends_the_round_and_leaves_the_engine_empty(policy) -> None:
    engine = Engine(policy.model, rows=12)

    def fails(place: int, answer: Answer) -> None:
        raise RuntimeError("no isolation here")

    with pytest.raises(RuntimeError, match="no isolation here"):
        sample_round(engine, asked(policy), fails)
    assert not engine.busy


def test_the_tail_is_cut_once_the_share_is_finished(policy) -> None:
    requests = asked(policy, most=40)
    plain = Engine(policy.model, rows=12).generate(requests)

    def kept(place: int, answer: Answer) -> Answer:
        return answer

    found = sample_round(Engine(policy.model, rows=12), requests, kept, finish_share=0.5)
    answers = [answer for group in found.results for answer in group]
    assert sum(not answer.cut for answer in answers) >= 6 and len(answers) == 12
    assert found.cut == sum(answer.cut for answer in answers) > 0 == found.unbegun
    for group, whole in zip(found.results, plain, strict=True):
        for answer, piece in zip(group, whole, strict=True):
            drawn = answer.whole
            assert drawn.tokens == piece.tokens[: len(drawn.tokens)]
            assert drawn.logprobs == pytest.approx(piece.logprobs[: len(drawn.tokens)], abs=1e-5)
            assert drawn.finish == ("length" if answer.cut else piece.finish)
            assert (len(drawn.tokens) < len(piece.tokens)) or not answer.cut


def test_answers_without_a_token_are_left_out_and_counted(policy) -> None:
    found = sample_round(Engine(policy.model, rows=4), asked(policy), lambda place, answer: place, finish_share=0.25)
    assert found.unbegun > 0
    assert sum(map(len, found.results)) + found.unbegun == 12


def test_cut_answers_count_as_truncated(policy) -> None:
    whole, cut = (sample(policy, objective=KEEP_ALL, refill_rounds=0, finish_share=share) for share in (1.0, 0.6))
    assert cut.cut > 0 == whole.cut
    assert sum(e.truncated for e in cut.sampled) >= cut.cut
    assert cut.tokens < whole.tokens


def test_drafts_change_no_answer_and_their_acceptance_is_told(policy) -> None:
    plain, drafted = (sample(policy, drafts=drafts, objective=KEEP_ALL) for drafts in ("off", "auto"))
    assert [e.completion for e in plain.sampled] == [e.completion for e in drafted.sampled]
    assert [e.reward for e in plain.sampled] == [e.reward for e in drafted.sampled]
    assert plain.drafted is None and plain.draft_acceptance is None
    assert drafted.drafted is not None and drafted.drafted >= 1


def test_replayed_experts_close_the_gap_that_another_routing_opens(policy, tmp_path: Path) -> None:
    """The sampler's selection biases are disturbed: it takes other experts at the same weights."""
    sampler = copy.deepcopy(policy.model)
    for layer in moe_layers(sampler):
        layer.router.selection_bias.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    gaps = dict[tuple[bool, float], dict[str, object]]()
    for replay in (False, True):
        for pays in (0.25, 2.0):  # prompts computed once, or in every row
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("fathom.rl.batch.SHARING_PAYS", 0.0 if pays < 1 else 2.0)
                rollout = sample(policy, sampler, replay_routing=replay, objective=KEEP_ALL)
                assert all((e.experts is None) != replay for e in rollout.kept)
                more = {"mtp_weight": 0.3} if len(policy.model.mtp) else {}
                path = tmp_path / f"{replay}{pays}"
                gaps[replay, pays] = updated(
                    policy, rollout, path, replay_routing=replay, micro_batch_rows=5, objective=KEEP_ALL, **more
                )
    for pays in (0.25, 2.0):
        assert gaps[False, pays]["gap"] > 1e-2 and gaps[False, pays]["gap_k3"] > 1e-4
        assert gaps[True, pays]["gap_max"] < 1e-4 and abs(float(str(gaps[True, pays]["gap_k3"]))) < 1e-6


def test_the_exact_mode_has_no_gap_and_tells_the_engines_own(policy, tmp_path: Path) -> None:
    objective = replace(KEEP_ALL, correction="truncate")
    rollout = sample(policy, objective=objective)
    shifted = [replace(e, logprobs=[p - 0.25 for p in e.logprobs]) for e in rollout.kept]
    rollout = replace(rollout, kept=shifted)
    plain = updated(policy, rollout, tmp_path / "plain", objective=objective, micro_batch_rows=5)
    exact = updated(policy, rollout, tmp_path / "exact", objective=objective, micro_batch_rows=5, exact_sampling=True)
    assert plain["gap"] == pytest.approx(0.25, abs=1e-4) and plain["gap_max"] == pytest.approx(0.25, abs=1e-4)
    assert plain["gap_k3"] == pytest.approx(2.718281828**0.25 - 0.25 - 1, abs=1e-4)
    assert (exact["gap"], exact["gap_max"], exact["gap_k3"]) == (0.0, 0.0, 0.0)
    assert exact["engine_gap"] == pytest.approx(0.25, abs=1e-4)
    assert "corrected" in plain and "corrected" not in exact


def test_what_a_model_has_no_parts_for_is_refused(policy, tmp_path: Path) -> None:
    bare = copy.deepcopy(policy.model)
    bare.mtp = torch.nn.ModuleList()
    place = Place(Run(tmp_path), "grpo", WORLD)
    with pytest.raises(ValueError, match=r"grpo.drafts=auto needs an MTP module"):
        train_grpo(place, replace(policy.config, drafts="auto"), bare, policy.task, policy.tokenizer, 0)
    with pytest.raises(ValueError, match=r"grpo.finish_share=0.9 .* grpo.drafts=auto"):
        replace(policy.config, drafts="auto", finish_share=0.9)
