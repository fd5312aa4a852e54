from fathom.config import SamplingConfig
from fathom.infer.request import Request
from fathom.infer.scheduler import PREFILL_TOKENS, Queue


def request(length: int = 3, n: int = 1) -> Request:
    return Request([1] * length, SamplingConfig(), seed=0, stop_ids=frozenset(), n=n)


def fill(queue: Queue, *requests: Request) -> Queue:
    for number, each in enumerate(requests):
        queue.put(number, each, streams=False)
    return queue


def taken(queue: Queue, free: int) -> list[tuple[int, list[int]]]:
    return [(each.request_id, list(each.samples)) for each in queue.take(free)]


def test_all_enter_when_all_fit() -> None:
    queue = fill(Queue(16), request(n=3), request(n=4))
    assert taken(queue, 7) == [(0, [*range(3)]), (1, [*range(4)])]
    assert taken(queue, 16) == []


def test_nobody_enters_until_an_eighth_of_the_rows_is_free() -> None:
    queue = fill(Queue(16), *[request()] * 5)
    assert taken(queue, 1) == []
    assert taken(queue, 2) == [(0, [*range(1)]), (1, [*range(1)])]
    assert taken(queue, 1) == []
    assert taken(queue, 3) == [(2, [*range(1)]), (3, [*range(1)]), (4, [*range(1)])]


def test_samples_enter_together_and_nobody_overtakes() -> None:
    queue = fill(Queue(8), request(n=4), request(n=1))
    assert taken(queue, 3) == []
    assert taken(queue, 4) == [(0, [*range(4)])]
    assert taken(queue, 4) == [(1, [*range(1)])]


def test_more_samples_than_rows_enter_in_parts() -> None:
    queue = fill(Queue(4), request(n=10))
    assert [taken(queue, 4) for _ in range(3)] == [[(0, [*range(4)])], [(0, [*range(4, 8)])], [(0, [*range(8, 10)])]]


def test_one_prompt_pass_is_bounded() -> None:
    third = PREFILL_TOKENS // 3
    queue = fill(Queue(8), *[request(third)] * 5, request(PREFILL_TOKENS * 2))
    assert [len(queue.take(8)) for _ in range(4)] == [3, 2, 1, 0]


def test_removed_requests_are_waited_for_no_more() -> None:
    queue = fill(Queue(16), request(n=20), request(n=1), request(n=1))
    assert taken(queue, 16) == [(0, [*range(16)])]
    queue.remove(0)
    assert taken(queue, 2) == [(1, [*range(1)]), (2, [*range(1)])]
    queue.remove(2)
    assert taken(queue, 16) == []
