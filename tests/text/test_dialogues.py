import random

import pytest

from fathom.config import TaskConfig
from fathom.tasks import build
from fathom.tasks.grade import evaluate
from fathom.tasks.task import is_held_out, problem_key
from fathom.text.chat import parse_reply
from fathom.text.dialogues import Dialogue, encode_dialogue, expression_documents, worked_dialogues
from fathom.text.disjoint import given_away, stated_problems
from fathom.text.tokenizer import Tokenizer

TASK = TaskConfig(numbers=3, max_number=20, max_target=60)


def test_a_dialogue_in_ids(tokenizer: Tokenizer):
    ids = encode_dialogue(tokenizer, Dialogue("8,2:10", "8+2=10</think><answer>8+2</answer>"))
    assert tokenizer.decode(ids.prompt) == "<|bos|><|user|>8,2:10<|assistant|><think>"
    assert tokenizer.decode(ids.reply) == "8+2=10</think><answer>8+2</answer><|eos|>"
    assert len(ids.prompt) == 9
    assert len(ids.reply) == 12


def test_worked_dialogues_are_right_and_of_the_training_split(tokenizer: Tokenizer):
    dialogues = worked_dialogues(tokenizer, build(TASK), seed=0, count=100)
    assert len(dialogues) == 100
    for prompt, reply in dialogues:
        [(numbers, target)] = stated_problems(tokenizer.decode(prompt))
        assert not is_held_out(problem_key(numbers, target), TASK.held_out_share)
        parsed = parse_reply(tokenizer.decode(reply))
        assert parsed.well_formed
        outcome = evaluate(parsed.answer or "")
        assert outcome is not None
        assert (outcome.value, sorted(outcome.numbers)) == (target, sorted(numbers))


def test_worked_dialogues_follow_the_seed(tokenizer: Tokenizer):
    def texts(seed: int) -> list[str]:
        return [tokenizer.decode(reply) for _, reply in worked_dialogues(tokenizer, build(TASK), seed, 20)]

    assert texts(5) == texts(5)
    assert texts(5) != texts(6)


@pytest.mark.parametrize("operators", ["+-", "+-*/"])
@pytest.mark.parametrize("numbers", [2, 3, 6])
def test_expressions_are_right_and_no_problem_of_the_task(numbers: int, operators: str):
    task = TaskConfig(numbers=numbers, max_number=20, max_target=60, operators=operators)
    documents = expression_documents(0, 60, task)
    sizes: set[int] = set()
    for question, reply in documents:
        [(given, target)] = stated_problems(question)
        sizes.add(len(given))
        assert len(given) != numbers or target > 60 or max(given) > 20
        parsed = parse_reply(reply)
        assert parsed.well_formed
        outcome = evaluate(parsed.answer or "")
        assert outcome is not None
        assert (outcome.value, sorted(outcome.numbers)) == (target, sorted(given))
        assert ";" not in parsed.thinking
    assert sizes == {2, 3, 4}
    assert given_away([text for document in documents for text in document], task) == set()


def test_expressions_follow_the_seed():
    assert expression_documents(1, 20, TASK) == expression_documents(1, 20, TASK)
    assert expression_documents(1, 20, TASK) != expression_documents(2, 20, TASK)


@pytest.mark.parametrize(
    "config",
    [
        TaskConfig(kind="sorting", numbers=6),
        TaskConfig(kind="multiplication", numbers=2),
        TaskConfig(kind="logic", numbers=4),
        TaskConfig(numbers=4, fewest_numbers=3),
        TaskConfig(numbers=4, fewest_numbers=2),
        TaskConfig(numbers=3, prompt="words"),
    ],
)
def test_documents_beside_other_tasks_teach_the_template_and_state_none_of_their_problems(config: TaskConfig) -> None:
    documents = expression_documents(0, 200, config)
    assert all("</think><answer>" in document.reply for document in documents)
    assert not given_away((f"{d.question}\n{d.reply}" for d in documents), config)
    if config.kind != "countdown":  # another task's: none is asked in this one's form
        task = build(config)
        asked = {task.sample(random.Random(seed), False).question for seed in range(300)}
        assert not asked & {document.question for document in documents}
