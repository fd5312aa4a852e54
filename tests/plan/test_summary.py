"""The dict of a plan holds together."""

import json

import pytest

from fathom.plan.layout import Layout
from fathom.plan.question import Question
from fathom.plan.summary import make_plan
from fathom.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_plan(name: str) -> None:
    found = make_plan(preset(name), Question(mfu=0.3))
    assert json.loads(json.dumps(found))["model"]["name"] == name
    included = [line for line in found["cost"]["lines"] if line["included"]]
    for unit in ("hours", "gpu_hours", "dollars", "energy_kwh"):
        assert found["cost"]["total"][unit] == pytest.approx(sum(line[unit] for line in included))
    assert found["serving"]["sequences"] >= 1 and found["cost"]["excluded"]


def test_the_plan_of_v3() -> None:
    found = make_plan(preset("v3"), Question())
    assert found["model"]["total"] == 671_026_419_200
    assert found["model"]["active_without_embedding"] == 36_625_618_432
    assert found["checkpoint"]["elements"]["F8_E4M3"] == 680_571_043_840
    assert found["cache"]["bytes"]["BF16"] == 70_272
    assert found["cost"]["total"]["gpu_hours"] == pytest.approx(2_788e3)
    assert found["cost"]["total"]["dollars"] == pytest.approx(5.576e6)
    assert found["layout"]["pipeline"] == 16
    assert found["command"] == "" and found["prediction"] == {}  # Fathom trains no such layout


@pytest.mark.parametrize(("aim", "spent"), [({"budget": 30.0}, 30.0), ({"hours": 5.0}, 5 * 2 * 3.0)])
def test_money_or_time_is_spent_on_pretraining_alone(aim: dict[str, float], spent: float) -> None:
    found = make_plan(preset("small"), Question(gpus="2xH200", **aim))
    assert found["cost"]["total"]["dollars"] == pytest.approx(spent)
    assert [line["name"] for line in found["cost"]["lines"] if line["included"]] == ["pretraining"]
    tokens = found["cost"]["lines"][0]["tokens"]
    assert tokens == pytest.approx(found["cost"]["tokens_per_s"] * found["cost"]["total"]["hours"] * 3600)
    assert found["prediction"]["tokens"] == tokens
    steps = int(found["command"].split("--pretrain.steps ")[1])
    assert steps * 512 * 4096 == pytest.approx(tokens, rel=1e-3)


def test_rows_and_their_length_can_be_given() -> None:
    found = make_plan(preset("small"), Question(gpus="h200", rows=64, seq_len=2048, tokens="1B"))
    assert found["flops"]["seq_len"] == 2048 and found["cost"]["lines"][0]["tokens"] == 1e9
    assert "--pretrain.batch_rows 64" in found["command"] and "--pretrain.seq_len 2048" in found["command"]


def test_a_run_that_does_not_fit_says_so_and_is_priced_all_the_same() -> None:
    found = make_plan(preset("v3"), Question(gpus="8xH100"))
    assert not found["memory"]["fits"] and "no layout" in found["memory"]["fix"]
    assert "layouts" not in found and found["cost"]["total"]["dollars"] > 1e6


def test_no_command_begins_a_run_that_does_not_fit() -> None:
    found = make_plan(preset("small"), Question(gpus="h200", layout=Layout(micro_batch_rows=512)))
    assert not found["memory"]["fits"] and "micro_batch_rows=" in found["memory"]["fix"]
    assert found["command"] == "" and found["prediction"] == {}
    assert [row["runs_in_fathom"] for row in found["layouts"]] == [False]


def test_devices_of_ones_own_cost_nothing() -> None:
    found = make_plan(preset("small"), Question(gpus="h200", price=0.0, tokens="1B"))
    assert found["cost"]["total"]["dollars"] == 0 and found["cost"]["price_source"] == "given"


def test_what_is_assumed_is_said() -> None:
    found = make_plan(preset("qwen3-8b"), Question(gpus="8xH200"))
    notes = {line["name"]: line["note"] for line in found["cost"]["lines"]}
    assert "as many tokens as V3" in notes["pretraining"] and "half the ceiling" in notes["RL rollouts"]
    assert "prices move" in found["cost"]["price_source"]
    asked = make_plan(preset("qwen3-8b"), Question(gpus="8xH200", tokens="1T"))
    assert asked["cost"]["lines"][0]["note"] == ""


def test_serving_is_planned_for_sequences_that_the_model_reads() -> None:
    assert make_plan(preset("small"), Question(gpus="h200"))["serving"]["context"] == 4096
    with pytest.raises(ValueError, match="--context 5000 is longer than the model's 4096 tokens"):
        make_plan(preset("small"), Question(gpus="h200", context=5000))


def test_serving_takes_as_many_devices_as_the_weights_need() -> None:
    assert make_plan(preset("v3"), Question())["serving"]["devices"].startswith("16 ")
    assert make_plan(preset("qwen3-8b"), Question(gpus="h200"))["serving"]["devices"].startswith("1 ")


def test_a_pipeline_is_played_out_beside_others_of_as_many_stages() -> None:
    found = make_plan(preset("laptop"), Question(schedule="dualpipe"))
    assert list(found) == ["schedule"]
    bubbles = {row["schedule"]: row["bubble"] for row in found["schedule"]["bubbles"]}
    assert bubbles == {"1f1b": 21, "zb1p": 7, "dualpipe": 6, "dualpipev": 6}
    assert found["schedule"]["bubble"] == 6
    found = make_plan(preset("laptop"), Question(schedule="zbv", ranks=4))  # two stages a rank
    assert {row["schedule"]: row["devices"] for row in found["schedule"]["bubbles"]}["1f1b"] == 8
