"""Which answers are the same, and where in a reply the answer stands."""

import pytest

from fathom.tasks.answer import LONGEST, canonical, last_boxed
from fathom.text.answer import final_answer

EQUAL = [
    ["1/2", "0.5", ".5", "0.50", r"\frac{1}{2}", r"\dfrac12", r"\tfrac{1}2", r"$\frac{1}{2}$", " 1 / 2 ", "2/4", "+.5"],
    ["42", "042", "42.", "42.0", r"\(42\)", r"\text{42}", r"42^\circ", r"42^{\circ}", "x=42", "f(x) = 42", "{42}"],
    ["1,234", "1234", "1{,}234".replace("{,}", ","), r"1,\!234", "1234.00"],
    ["-3/2", "-1.5", r"-\frac{3}{2}", r"\frac{-3}{2}", r"-1\frac{1}{2}"],
    ["50", r"50\%", "50%"],
    ["(0.5, 2)", r"\left( \frac{1}{2}, 2 \right)", "(1/2,2.0)"],
    [r"\frac{\pi}{2}", r"\dfrac{\pi}{2}", r"$\frac{\pi} {2}$"],
    ["C", "c", r"\text{C}", r"\mathrm{C}"],
    ["8+4-2", " 8 + 4 - 2 "],
    [r"\{1, 2\}", "{1,2}"],
]


@pytest.mark.parametrize("forms", EQUAL, ids=lambda forms: forms[0])
def test_forms_of_one_answer_are_one(forms: list[str]) -> None:
    assert len({canonical(form) for form in forms}) == 1, {form: canonical(form) for form in forms}


def test_different_answers_stay_apart() -> None:
    found = [canonical(forms[0]) for forms in EQUAL]
    found += map(
        canonical,
        ["1/3", "0.333", "2+2", "4", r"\sqrt4", "1/0", "(1,2)", "[1,2)", "(1,2,3)", "12,34", "1,2", r"3\frac{-1}{2}"],
    )
    found += map(canonical, ["", "1e3", "x", "²", "٣", "3"])
    assert len(set(found)) == len(found)


def test_hostile_answers_cost_nothing() -> None:
    for text in ("9" * 10_000, "1e999999999", "(" * 900, "\\frac" * 180, "1," * 499, "{" * 400 + "}" * 400):
        assert isinstance(canonical(text), str)
    assert canonical("9" * (LONGEST + 1)) == "9" * (LONGEST + 1)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("so</think><answer>8+4-2</answer>", "8+4-2"),
        ("so</think><answer>1</answer><answer> 2 </answer>", "2"),
        (r"so</think><answer>it is \boxed{\frac{1}{2}}</answer>", r"\frac{1}{2}"),
        (r"<think>\boxed{1}</think>It is \boxed{2}.", "2"),
        (r"\boxed{1} or rather \boxed{\frac{1}{2}} \boxed{", r"\frac{1}{2}"),
        (r"\boxed{3}<|eos|>\boxed{4}", "3"),
        ("so</think><answer></answer>", None),
        (r"<think>perhaps \boxed{1}", None),  # it never stopped thinking
        ("it is 5", None),
    ],
)
def test_where_the_answer_stands(reply: str, answer: str | None) -> None:
    assert final_answer(reply) == answer


def test_thinking_that_the_prompt_opened_must_close() -> None:
    assert final_answer(r"\boxed{1}", thinking=True) is None
    assert final_answer(r"\boxed{1}</think>\boxed{2}", thinking=True) == "2"


def test_boxes_nest() -> None:
    assert last_boxed(r"\boxed{\boxed{1}}") == "1"
    assert last_boxed(r"\fbox {a{b}c}") == "a{b}c"
    assert last_boxed(r"\boxed{}") is None
