"""Made-up small talk, and the files that take its place."""

from pathlib import Path

import pytest

from fathom.text.chat import parse_reply
from fathom.text.general import (
    Preference,
    balanced,
    made_up_dialogues,
    made_up_preferences,
    read_dialogues,
    read_preferences,
)


def test_dialogues_answer_without_thinking_and_follow_from_the_seed() -> None:
    found = made_up_dialogues(3, 50)
    assert found == made_up_dialogues(3, 50) != made_up_dialogues(4, 50)
    replies = [parse_reply(reply) for _, reply in found]
    assert all(reply.well_formed and reply.thinking == "" and reply.answer for reply in replies)


def test_pairs_differ_and_balancing_takes_the_length_out_of_them() -> None:
    pairs = made_up_preferences(0, 300)
    assert all(pair.chosen != pair.rejected for pair in pairs)
    even = balanced(pairs)
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in even)
    assert longer == sum(len(pair.chosen) < len(pair.rejected) for pair in even) > 20
    same = [Preference("q", "ab", "cd")]
    assert balanced([*same, Preference("q", "abc", "d")]) == same


def test_files_are_read_and_bad_lines_named(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n\n')
    assert read_preferences(file) == [Preference("p", "c", "r")]
    file.write_text('{"prompt": "p", "response": "r"}\n{"prompt": "p", "response": "r", "thinking": "t"}\n')
    assert [reply for _, reply in read_dialogues(file)] == [
        "</think><answer>r</answer>",
        "t</think><answer>r</answer>",
    ]
    for text, message in (
        ("", "is empty"),
        ("{", "line 1 is no JSON"),
        ('{"prompt": "p"}', "line 1 has no text chosen"),
        ("[1]", "line 1 has no text prompt"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_preferences(file)
