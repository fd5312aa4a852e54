"""The list of points that `fathom conform` asks, put to Fathom's own server."""

import socket
from collections.abc import Callable
from typing import Any

from fathom.bench.load_options import LoadOptions
from fathom.bench.serve import main as load
from fathom.conform.points import conform
from fathom.serve.server import listen

KEY = "a-key-of-eight"


def test_our_server_holds_what_it_offers(serve: Callable[..., Any]) -> None:
    served = serve(keys=(KEY,), queue=2)
    outcomes, record = conform(served.url, KEY, "", "8,2,4:10", 64, 12, 30.0)
    assert {each.name: each.seen for each in outcomes if each.result == "not held"} == {}
    assert record["conforms"]
    assert {each.name for each in outcomes if each.result == "not offered"} <= {
        "tool calls",
        "what is left alone stops",
    }


def test_answers_are_sent_at_once() -> None:
    with listen("127.0.0.1", 0) as sock:  # asyncio turns Nagle's wait off for sockets that say they are TCP
        assert sock.proto == socket.IPPROTO_TCP


def test_the_load_generator_knows_our_model_and_machine(shared: Any) -> None:
    found = load(shared.url, LoadOptions(clients=2, requests=4, warm_up=1, max_tokens=8, prompt_tokens=(30,)))
    assert (found["answered"], found["mean_tokens"]) == (4, 8.0)
    assert abs(found["mean_prompt_tokens"] - 30) <= 1
    limit = found["limit"]
    assert limit["source"] == "measured here before the load"
    assert 0 < limit["share"] < 1
    assert limit["tokens_per_s"] > found["tokens_per_s"]
