"""Files of questions: what is read, what is refused, what matches."""

import json
from pathlib import Path

import pytest

from fathom.eval.questions import Question, read_questions


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_the_published_forms_are_read(tmp_path: Path) -> None:
    gpqa = {"Question": "Q?", "Correct Answer": "right", **{f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}}
    found = read_questions(
        write(
            tmp_path / "q.jsonl",
            {"Problem": "1+1", "Answer": 2, "Solution": "..."},  # AIME
            '{"problem": "a half", "answer": 0.50, "level": 3, "id": "h"}',
            "",
            {"question": "Which?", "choices": ["red", "green"], "answer": "b"},
            {"question": "Which?", "choices": ["red", "green"], "answer": "red"},
            gpqa,
        )
    )
    assert [each.id for each in found] == ["1", "h", "4", "5", "6"]
    assert [each.answer for each in found[:4]] == ["2", "1/2", "B", "A"]
    assert found[2].text == "Which?\nA) red\nB) green"
    *_, shuffled = found
    assert shuffled.choices["ABCD".index(shuffled.answer)] == "right"
    assert sorted(shuffled.choices) == ["right", "wrong 1", "wrong 2", "wrong 3"]
    assert read_questions(tmp_path / "q.jsonl") == found


def test_the_right_choice_stands_anywhere(tmp_path: Path) -> None:
    wrong = {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
    lines = [{"Question": f"Q{n}", "Correct Answer": "right", **wrong} for n in range(60)]
    assert {each.answer for each in read_questions(write(tmp_path / "q.jsonl", *lines))} == set("ABCD")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2: it is no JSON"),
        ("[]", "line 2: it is no JSON object"),
        ({"answer": "1"}, "line 2: it has no question"),
        ({"question": "1"}, "line 2: it has no answer"),
        ({"question": "1", "answer": True}, "it has no answer"),
        ({"question": "1", "answer": ["1"]}, "it has no answer"),
        ({"question": "1", "choices": ["a"], "answer": "A"}, "choices is not a list of 2 to 26 texts"),
        ({"question": "1", "choices": ["a", "b"], "answer": "C"}, "answer='C' is none of its 2 choices"),
        ({"question": "1", "Correct Answer": "a"}, "not the texts Incorrect Answer 1 to 3"),
    ],
)
def test_a_line_that_is_no_question_is_refused_by_number(tmp_path: Path, line: object, sentence: str) -> None:
    file = write(tmp_path / "q.jsonl", {"question": "1", "answer": "1"}, line)
    with pytest.raises(ValueError) as error:
        read_questions(file)
    assert sentence in str(error.value) and str(file) in str(error.value)


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no question"):
        read_questions(write(tmp_path / "q.jsonl", ""))
    with pytest.raises(ValueError, match="there is no file"):
        read_questions(tmp_path / "absent")


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B) green", "B"),
        ("B.", "B"),
        (r"\text{B}", "B"),
        ("green", "B"),
        (" 2/4 ", "C"),
        ("because", "because"),
        ("E", "e"),  # there is no such choice
    ],
)
def test_a_choice_is_named_by_letter_or_text(answer: str, form: str) -> None:
    assert Question("1", "?", "B", ("red", "green", "0.5")).matching_form(answer) == form


def test_a_text_that_is_a_letter_goes_before_letters() -> None:
    assert Question("1", "?", "A", ("B", "A")).matching_form("B") == "A"
