from fathom.config import TaskConfig
from fathom.tasks.task import problem_key
from fathom.text.disjoint import given_away, is_in_range, stated_problems


def test_questions_and_chains_are_found():
    text = "so 8,2,4:10 and\n8+4=12,12-2=10;7-5=2,9+3=12,12/2=6\n17+26=43"
    assert list(stated_problems(text)) == [((8, 2, 4), 10), ((8, 4, 2), 10), ((7, 5, 9, 3), 6)]


def test_a_chain_that_leaves_a_result_unused_states_nothing():
    assert list(stated_problems("8+4=12,7-2=5")) == []


def test_range_is_the_tasks():
    task = TaskConfig(numbers=3, max_number=20, max_target=60)
    assert is_in_range(task, (20, 20, 20), 60)
    assert not is_in_range(task, (20, 20, 21), 60)
    assert not is_in_range(task, (20, 20, 20), 61)
    assert not is_in_range(task, (5, 5, 10), 0)
    assert not is_in_range(task, (5, 5), 10)


def test_keys_do_not_depend_on_order():
    task = TaskConfig(numbers=3, max_number=20, max_target=60)
    texts = ["8,2,4:10", "4+8=12,12-2=10", "3,4:7", "80,2,4:86"]
    assert given_away(texts, task) == {problem_key((2, 4, 8), 10)}
