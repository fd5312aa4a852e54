import random
import re
from fractions import Fraction
from itertools import pairwise

import pytest

from fathom.config import TaskConfig
from fathom.tasks.grade import evaluate
from fathom.text.arithmetic import KINDS, Range, arithmetic_documents, chain, counting, family, missing, splits
from fathom.text.disjoint import given_away
from fathom.text.tokenizer import Tokenizer


def value(expression: str) -> Fraction:
    found = evaluate(expression)
    assert found is not None, expression
    return found.value


def is_true(claim: str) -> bool:
    if missing := re.fullmatch(r"(.*)\?(.*):(\d+)", claim):
        claim = f"{missing[1]}{missing[3]}{missing[2]}"
    if comparison := re.fullmatch(r"(\d+)([<>])(\d+)", claim):
        left, right = int(comparison[1]), int(comparison[3])
        return left < right if comparison[2] == "<" else left > right
    return len({value(side) for side in claim.split("=")}) == 1


def claims(documents: list[str]) -> list[str]:
    return [claim for document in documents for line in document.split("\n") for claim in line.split(",")]


@pytest.mark.parametrize("operators", ["+-", "+", "-", "*", "+-*/"])
def test_everything_claimed_is_true(operators: str):
    documents = arithmetic_documents(0, 1000, 99, operators)
    assert all(is_true(claim) for claim in claims(documents))
    assert sum("=" in claim for claim in claims(documents)) > 1500


def test_the_check_can_fail():
    assert not is_true("17+26=44")
    assert not is_true("17+?=43:27")
    assert not is_true("17>26")
    assert not is_true("43=17+26=50-8")


def test_values_stay_in_range():
    documents = arithmetic_documents(0, 2000, 50)
    numbers = [int(n) for document in documents for n in re.findall(r"\d+", document)]
    assert max(numbers) <= 999
    small = [n for n in numbers if n <= 50]
    assert len(small) / len(numbers) > 0.9  # the rest are the large sums and the multiplication table


def test_equal_seeds_give_equal_documents_and_others_do_not():
    assert arithmetic_documents(3, 50) == arithmetic_documents(3, 50)
    assert arithmetic_documents(3, 50) != arithmetic_documents(4, 50)
    assert arithmetic_documents(3, 50)[:20] != arithmetic_documents(4, 20)


def test_documents_are_short_and_varied(tokenizer: Tokenizer):
    documents = arithmetic_documents(0, 2000)
    lengths = [len(ids) for ids in tokenizer.encode_batch(documents)]
    assert max(lengths) <= 40
    assert 22 < sum(lengths) / len(lengths) < 30
    assert len(set(documents)) > 1700
    assert sum("?" in document for document in documents) / 2000 == pytest.approx(0.08, abs=0.02)
    assert sum(kind.weight for kind in KINDS) == 100


def test_every_sum_to_99_is_seen_often():
    sums = {(a, c) for a, b, c in re.findall(r"\b(\d+)\+(\d+)=(\d+)", "\n".join(arithmetic_documents(0, 20_000)))}
    wanted = {(str(a), str(c)) for c in range(1, 100) for a in range(c + 1)}
    assert len(wanted & sums) / len(wanted) > 0.98


def test_lines_have_their_forms():
    rng, limits = random.Random(0), Range()
    for _ in range(50):
        assert re.fullmatch(r"\d+[+-]\d+=\d+(,\d+[+-]\d+=\d+){1,2}", chain(rng, limits))
        assert len({frozenset(re.findall(r"\d+", line)) for line in family(rng, limits).split("\n")}) == 1
        assert missing(rng, limits).count("?") == 1
        assert re.fullmatch(r"\d+(=\d+[+-]\d+){2,4}", splits(rng, limits))
        values = list(map(int, counting(rng, limits).split(",")))
        assert len({b - a for a, b in pairwise(values)}) == 1


def test_chains_take_up_the_result_before():
    rng, limits = random.Random(0), Range()
    for _ in range(100):
        steps = [list(map(int, re.findall(r"\d+", step))) for step in chain(rng, limits).split(",")]
        assert all(before[2] in after[:2] for before, after in pairwise(steps))


def test_no_chain_states_a_problem_of_the_task():
    task = TaskConfig(numbers=3, max_number=20, max_target=60)
    assert len(given_away(arithmetic_documents(0, 5000), task)) > 20
    assert given_away(arithmetic_documents(0, 5000, task=task), task) == set()
    # every chain of two steps lies within this task: the documents fall back on single sums
    wide = TaskConfig(numbers=3, max_number=99, max_target=99)
    assert given_away(arithmetic_documents(0, 500, max_value=9, task=wide), wide) == set()


def test_a_range_beyond_single_tokens_is_refused():
    with pytest.raises(ValueError, match=r"max_value=1000 is outside 2\.\.999"):
        arithmetic_documents(0, 1, max_value=1000)
