"""Every curve comes from the run, and only curves the run has."""

import math

import pytest

from fathom.config import ModelConfig, MoEConfig
from fathom.report.experts import expert_figures, placement_cards
from fathom.report.figures import loss_figures, mtp_figures, reward_figures, series
from fathom.report.processes import process_figures
from fathom.report.units import MISSING


def steps(count: int, **values: float | None) -> list[dict[str, object]]:
    return [{"stage": "grpo", "step": step, **values} for step in range(1, count + 1)]


def test_null_is_a_gap_and_absence_is_nothing() -> None:
    values = series([{"loss": 1.5}, {"loss": None}, {"other": 2.0}], "loss")
    assert values[0] == 1.5 and math.isnan(values[1]) and len(values) == 2


def test_validation_lines_join_the_training_lines() -> None:
    pretrain = [{"step": 1, "loss_main": 7.0}, {"step": 2, "loss_main": 6.0}, {"step": 2, "validation_loss": 6.5}]
    (figure,) = loss_figures({"pretrain": pretrain})
    assert figure.columns == ["step", "next token", "validation, next token"]
    assert figure.rows == [["1", "7", MISSING], ["2", "6", "6.5"]]


def test_long_curves_are_tabled_from_first_to_last() -> None:
    (figure,) = loss_figures({"sft": [{"step": step, "loss_main": float(step)} for step in range(1, 1002)]})
    assert [row[0] for row in figure.rows] == ["1", *(f"{step:,}" for step in range(101, 1002, 100))]
    assert figure.name == "loss-sft"


def test_dropped_groups_are_a_share_of_all() -> None:
    (figure,) = reward_figures(steps(3, groups_kept=12, groups_dropped=4))
    assert figure.name == "groups" and figure.rows[0] == ["1", "25.0 %"]


def test_a_field_without_a_number_draws_nothing() -> None:
    assert reward_figures(steps(3, entropy=None)) == []
    assert mtp_figures({}) == []


def test_expert_shares_name_their_layers() -> None:
    model = ModelConfig(num_hidden_layers=3, moe=MoEConfig(first_k_dense_replace=1))
    record = {
        "stage": "sft",
        "step": 9,
        "expert_shares": [[2.0, 2.0, 2.0, 2.0], [1.0, 3.0, 2.0, 2.0], [4.0, 0, 0, 4.0]],
    }
    (figure,) = expert_figures({"sft": [record]}, model)
    assert [row[0] for row in figure.rows] == ["layer 1", "layer 2", "MTP 1"]
    assert figure.rows[1][1:] == ["12.5 %", "37.5 %", "25.0 %", "25.0 %"]
    assert "at step 9 of SFT; even would be 25 % each" in figure.caption


@pytest.mark.parametrize("stage", ["pretrain", "sft", "grpo"])
def test_balance_is_drawn_for_any_stage(stage: str) -> None:
    (figure,) = expert_figures({stage: steps(3, max_vio=0.5)}, ModelConfig())
    assert figure.rows[-1] == ["3", "0.5"]


def test_loads_over_time_are_multiples_of_the_mean() -> None:
    model = ModelConfig(num_hidden_layers=1, num_nextn_predict_layers=0)
    shares = [[[0.25, 0.25, 0.25, 0.25]], [[0.5, 0.25, 0.125, 0.125]], [[0.7, 0.1, 0.1, 0.1]]]
    records = [{"step": 10 * n, "expert_shares": layers} for n, layers in enumerate(shares, 1)]
    figure = expert_figures({"pretrain": records}, model)[-1]
    assert figure.columns == ["", "step 10", "step 20", "step 30"]
    assert figure.rows[0] == ["layer 0, expert 0", "1", "2", "2.8"]
    assert figure.rows[3] == ["layer 0, expert 3", "1", "0.5", "0.4"]


def test_of_many_experts_the_least_even_layers_are_drawn() -> None:
    model = ModelConfig(num_hidden_layers=4, num_nextn_predict_layers=0)
    shares = [[1 / 40] * 40, [2 / 40] * 20 + [0.0] * 20, [1 / 40] * 40, [1 / 40] * 40]
    records = [{"step": step, "expert_shares": shares} for step in range(1, 100)]
    figure = expert_figures({"pretrain": records}, model)[-1]
    assert {row[0].split(",")[0] for row in figure.rows} == {"layer 1"}
    assert "Of 4 layers the 1 least even" in figure.caption


def test_the_last_forecast_makes_the_cards() -> None:
    forecast = {"devices": 4, "slots": 12, "before": 0.5, "after": 0.25, "hindsight": 0.1}
    records = [{"step": 1, "placement": {**forecast, "before": 0.9}}, {"step": 2, "placement": forecast}, {"step": 3}]
    before, after = placement_cards({"sft": records})
    assert "4 devices" in before.label and before.value.startswith("+50")
    assert after.value.startswith("+25") and "12 slots" in after.lines[0]
    assert placement_cards({"sft": [{"step": 1}]}) == []


def test_a_breakdown_is_the_median_step_of_every_process() -> None:
    def breakdown(scale: float) -> list[dict[str, float]]:
        first = {"compute": 0.1 * scale, "communication": 0.02, "bubble": 0.0, "data": 0.005}
        return [first, {**first, "communication": 0.04}]

    records = [{"step": step, "breakdown": breakdown(scale)} for step, scale in enumerate((1, 2, 30), 1)]
    (figure,) = process_figures({"pretrain": [{"step": 0}, *records]})
    assert figure.columns[1:] == ["compute", "exposed communication", "pipeline bubble", "data wait", "step"]
    assert figure.rows == [
        ["rank 0", "200.0", "20.0", "0.0", "5.0", "225.0"],
        ["rank 1", "200.0", "40.0", "0.0", "5.0", "245.0"],
    ]


def test_held_out_accuracy_stands_beside_that_of_training_where_it_was_measured() -> None:
    lines = steps(3, accuracy=0.5)
    lines[1] |= {"held_out_accuracy": 0.25, "held_out_low": 0.1, "held_out_high": 0.5}
    (figure,) = (figure for figure in reward_figures(lines) if figure.name == "held-out")
    assert figure.rows == [["2", "25.0 %", "10.0 %", "50.0 %", "50.0 %"]]
