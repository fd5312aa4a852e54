"""The lm-eval adapter, in the harness itself where it is installed: pip install lm-eval."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fathom.eval.likelihood import rolling_windows, score_continuations
from fathom.infer.offline import Engine

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from fathom.eval.harness import FathomLM, cut_at, run_tasks, sampling_of, stop_texts  # noqa: E402

CHOICES = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
REPLIES = """
task: tiny_replies
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{reply}}}}"
generation_kwargs: {{max_gen_toks: 5, until: ["NEVER"], do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
TEXTS = """
task: tiny_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}]
"""


@dataclass
class Asked:
    """As the harness hands out a request."""

    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def model(untrained: Engine) -> FathomLM:
    return FathomLM(untrained)


def test_a_pair_is_scored_as_the_model_reads_it(model: FathomLM) -> None:
    tokenizer = model.engine.tokenizer
    found = model.loglikelihood([Asked(("17+26", "=43")), Asked(("", "43")), Asked(("a ", "b"))], disable_tqdm=True)
    pairs = [
        ([tokenizer.bos_id, *tokenizer.encode("17+26")], tokenizer.encode("=43")),
        ([tokenizer.bos_id], tokenizer.encode("43")),
        ([tokenizer.bos_id, *tokenizer.encode("a")], tokenizer.encode(" b")),
    ]
    wanted = dict(score_continuations(model.engine.model, pairs))
    assert found == [pytest.approx(tuple(wanted[place])) for place in range(3)]


def test_rolling_text_is_the_sum_of_its_windows(model: FathomLM) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    text = "1+2=3 " * 40
    ids = model.engine.tokenizer.encode(text)
    assert len(ids) > 2 * model.max_length
    theirs = map(make_disjoint_window, get_rolling_token_windows(ids, 1, model.max_length, 1))
    assert list(rolling_windows(ids, 1, model.max_length)) == list(theirs)
    wanted = score_continuations(model.engine.model, list(rolling_windows(ids, 1, model.max_length)))
    total = sum(likelihood.logprob for _, likelihood in wanted)
    assert model.loglikelihood_rolling([Asked((text,)), Asked(("",))]) == pytest.approx([total, 0.0])


def test_replies_end_at_their_stop_texts(model: FathomLM) -> None:
    whole = model.generate_until([Asked(("1+2", {"max_gen_toks": 9}))])[0]
    stop = whole[2]
    cut = model.generate_until([Asked(("1+2", {"max_gen_toks": 9, "until": [stop, ""]}))])[0]
    assert cut == whole.partition(stop)[0] != whole
    long = model.generate_until([Asked(("1+2=3 " * 40, {"max_gen_toks": 9}))])[0]
    tail = model.tok_encode("1+2=3 " * 40)[9 - model.max_length :]
    assert model.engine.tokenizer.encode(long) and len(tail) == model.max_length - 9
    with pytest.raises(ValueError, match="replies of 48 tokens, but the model's context holds 48"):
        model.generate_until([Asked(("1", {"max_gen_toks": 48}))])


def test_sampling_of_a_task() -> None:
    greedy = sampling_of({"until": ["\n"]})
    assert (greedy.temperature, greedy.max_tokens) == (0.0, 256)
    assert sampling_of({"do_sample": False, "temperature": 0.7}).temperature == 0.0
    assert sampling_of({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 3}) == sampling_of(
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_tokens": 3}
    )
    assert sampling_of({"do_sample": True}).temperature == 1.0
    with pytest.raises(ValueError, match="'num_beams', which Fathom does not honour"):
        sampling_of({"num_beams": 4})
    assert stop_texts({"until": "x"}) == ["x"] and stop_texts({"until": None}) == []
    assert cut_at("abcabc", ["c", "b"]) == "a"


def test_a_dialogue_becomes_a_prompt_with_one_beginning(model: FathomLM) -> None:
    prompt = model.apply_chat_template([{"role": "user", "content": "1+2"}])
    assert prompt == "<|bos|><|user|>1+2<|assistant|><think>"
    assert model.tok_encode(prompt) == model.speaker.encode("1+2")
    assert model.tok_encode("1+2", add_special_tokens=False) == model.engine.tokenizer.encode("1+2")


def test_the_harness_runs_local_tasks(model: FathomLM, tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    questions = ["1+2=", "3+4=", "5+6=", "2*3="]
    choices = [["3", "4"], ["7", "9"], ["12", "11"], ["6", "1"]]
    right = [0, 0, 1, 0]
    replies = model.generate_until([Asked((question, {"max_gen_toks": 5})) for question in questions])
    replies[-1] += "?"  # one is not what the model says
    lines = zip(questions, choices, right, replies, strict=True)
    file = tmp_path / "data.jsonl"
    file.write_text(
        "".join(json.dumps({"question": q, "choices": c, "answer": a, "reply": r}) + "\n" for q, c, a, r in lines)
    )
    for name, task in (("choices", CHOICES), ("replies", REPLIES), ("texts", TEXTS)):
        (tmp_path / f"{name}.yaml").write_text(task.format(file=file))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model, tasks=["tiny_choices", "tiny_replies", "tiny_texts"], task_manager=manager, bootstrap_iters=0
    )["results"]
    scores = [
        [model.loglikelihood([Asked((q, " " + choice))], disable_tqdm=True)[0][0] for choice in c]
        for q, c in zip(questions, choices, strict=True)
    ]
    picked = [row.index(max(row)) for row in scores]
    assert found["tiny_choices"]["acc,none"] == sum(p == r for p, r in zip(picked, right, strict=True)) / 4
    assert found["tiny_replies"]["exact_match,none"] == 0.75
    total = sum(model.loglikelihood_rolling([Asked((question,)) for question in questions]))
    assert found["tiny_texts"]["bits_per_byte,none"] == pytest.approx(-total / 16 / 0.6931471805599453)
    outcome = run_tasks(model.engine, ["tiny_choices"], tmp_path, None, 2, 0)
    assert outcome.record["n-samples"]["tiny_choices"] == {"original": 4, "effective": 2}
    assert "|tiny_choices|" in outcome.table
    json.dumps(outcome.record, allow_nan=False)
    with pytest.raises(ValueError, match="lm-eval has no task 'no_such_task'"):
        run_tasks(model.engine, ["no_such_task"], tmp_path, None, None, 0)
