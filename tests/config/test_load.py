"""Configs from TOML, overrides and JSON."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fathom.config import Config, TextConfig
from fathom.config.load import from_json, load_config, to_json
from fathom.config.objectives import named_objective
from fathom.presets import LAPTOP, PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip_is_exact(name: str) -> None:
    config = preset(name)
    assert from_json(to_json(config)) == config
    assert to_json(from_json(to_json(config))) == to_json(config)


def test_json_keeps_tuples_and_floats() -> None:
    config = replace(Config(), text=TextConfig(sources=("a.txt", "b"), fim_rate=0.1 + 0.2))
    restored = from_json(to_json(config)).text
    assert restored.sources == ("a.txt", "b")
    assert restored.fim_rate == 0.1 + 0.2


def test_json_of_an_older_config_takes_defaults() -> None:
    values = json.loads(to_json(preset("v3")))
    del values["grpo"]["optimizer"]["lr"]
    assert from_json(json.dumps(values)).grpo.optimizer.lr == Config().grpo.optimizer.lr


def test_toml_lies_over_the_preset_and_overrides_over_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'seed = 7\n[model.attention]\nq_lora_rank = "none"\nkv_lora_rank = 64\n'
        '[text]\nsources = ["a.txt", "b.txt"]\n[grpo]\nsteps = 5\noptimizer.lr = 1\n'
    )
    config = load_config(preset("v3"), file, {"grpo.steps": 9, "pretrain.schedule.decay": "cosine"})
    assert config.seed == 7
    assert config.model.attention.q_lora_rank is None
    assert config.model.attention.kv_lora_rank == 64
    assert config.text.sources == ("a.txt", "b.txt")
    assert (config.grpo.steps, config.grpo.optimizer.lr) == (9, 1.0)
    assert isinstance(config.grpo.optimizer.lr, float)
    assert config.pretrain.schedule.decay == "cosine"
    assert config.model.hidden_size == 7168


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("grpo.step", 3, "grpo.step is no field of the config; did you mean grpo.steps?"),
        ("model.kv_lora_rank", 3, "did you mean model.attention.kv_lora_rank?"),
        ("modle.vocab_size", 3, "did you mean model?"),
        ("zzz", 3, "its sections are parallel, "),
        ("grpo", 3, "grpo=3 is not a section"),
        ("grpo.steps", 1.5, "grpo.steps=1.5 is of type float; give a value of type int"),
        ("grpo.steps", True, "of type bool"),
        ("grpo.steps", "none", "of type str"),
        ("text.sources", "a.txt", "is not a list"),
        ("device", "gpu", "device='gpu' is unknown; choose one of auto, cpu, cuda"),
        ("model.hidden_size", 0, "model.hidden_size=0 is not above zero"),
    ],
)
def test_bad_values_get_one_sentence(path: str, value: object, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config(Config(), None, {path: value})
    assert sentence in str(error.value)


def test_files_that_cannot_be_read_get_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = = 3")
    other = tmp_path / "other.toml"
    other.write_text('preset = "v3"\n')
    with pytest.raises(ValueError, match="no config file"):
        load_config(Config(), tmp_path / "absent.toml")
    with pytest.raises(ValueError, match="not valid TOML"):
        load_config(Config(), broken)
    with pytest.raises(ValueError, match="written for the preset 'v3', but 'laptop'"):
        load_config(Config(), other)
    assert load_config(preset("v3"), other) == preset("v3")
    with pytest.raises(ValueError, match="not valid JSON"):
        from_json("{")
    with pytest.raises(ValueError, match="not a JSON object"):
        from_json("[]")


def test_the_name_of_an_objective_brings_its_values_and_other_fields_lie_over_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[grpo.objective]\nname = "dapo"\nclip_high = 0.3\n')
    assert load_config(LAPTOP, file).grpo.objective == replace(named_objective("dapo"), clip_high=0.3)
    found = load_config(LAPTOP, file, {"grpo.objective.name": "gspo"}).grpo.objective
    assert found == replace(named_objective("gspo"), clip_high=0.3)
    again = from_json(to_json(load_config(LAPTOP, file)))
    assert again.grpo.objective == replace(named_objective("dapo"), clip_high=0.3)
    file.write_text('[grpo.objective]\nname = "drgrpo"\n')
    with pytest.raises(ValueError, match="did you mean dr_grpo"):
        load_config(LAPTOP, file)
