from collections.abc import Mapping
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest

from fathom.config import GRPOConfig, SamplingConfig
from fathom.infer import Engine, Forced, Request
from fathom.model import Transformer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, r"sampling\.temperature=-0\.1 is not a finite number of at least 0"),
        ({"temperature": nan}, r"sampling\.temperature=nan"),
        ({"temperature": inf}, r"sampling\.temperature=inf"),
        ({"top_p": 0.0}, r"sampling\.top_p=0\.0 lies outside \(0, 1\]"),
        ({"top_p": 1.1}, r"sampling\.top_p=1\.1"),
        ({"top_p": nan}, r"sampling\.top_p=nan"),
        ({"min_p": -0.1}, r"sampling\.min_p=-0\.1 lies outside \[0, 1\]"),
        ({"min_p": nan}, r"sampling\.min_p=nan"),
        ({"top_k": -1}, r"sampling\.top_k=-1 is negative"),
        ({"presence_penalty": 2.5}, r"sampling\.presence_penalty=2\.5 lies outside \[-2, 2\]"),
        ({"frequency_penalty": nan}, r"sampling\.frequency_penalty=nan"),
        ({"repetition_penalty": 0.0}, r"sampling\.repetition_penalty=0\.0 is not a finite number above 0"),
        ({"repetition_penalty": inf}, r"sampling\.repetition_penalty=inf"),
        ({"max_tokens": 0}, r"sampling\.max_tokens=0 is not above zero"),
        ({"min_tokens": 65}, r"sampling\.min_tokens=65 lies outside \[0, 64\]"),
        ({"min_tokens": -1}, r"sampling\.min_tokens=-1"),
    ],
)
def test_laws_that_cannot_be_are_refused(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**fields)


@pytest.mark.parametrize("fields", [{"min_p": 0.1}, {"presence_penalty": 1.0}, {"min_tokens": 2}, {"top_k": 3}])
def test_grpo_refuses_laws_that_its_loss_does_not_count(fields: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="while the loss counts"):
        GRPOConfig(sampling=SamplingConfig(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": ("a",)}, "stop needs decode"),
        ({"stop": ("a",) * 17, "decode": str}, "stop holds 17 strings; give 16 at most"),
        ({"stop": ("a", ""), "decode": str}, "holds an empty string"),
        ({"stop_ids": frozenset(range(65))}, "stop_ids holds token id 40|stop_ids holds 65 ids; give 64 at most"),
        ({"logit_bias": {40: 1.0}}, "logit_bias holds token id 40, outside the model's vocabulary of 40"),
        ({"logit_bias": {3: 100.5}}, r"logit_bias of token 3 is 100\.5, outside \[-100, 100\]"),
        ({"logit_bias": {3: nan}}, "logit_bias of token 3 is nan"),
        ({"allow": frozenset()}, "allow is empty"),
        ({"allow": frozenset({-1})}, "allow holds token id -1"),
        ({"allow": frozenset({5})}, "allow holds stop ids alone, which min_tokens=3 rules out"),
        ({"stop_ids": frozenset(range(40))}, "stop_ids holds all tokens, which min_tokens=3 rules out"),
        ({"forced": Forced(tokens=(40,))}, "forced holds token id 40"),
        ({"forced": Forced(tokens=(1,), unless=99)}, "forced holds token id 99"),
        ({"forced": Forced(tokens=(1, 5), after=1)}, "forced puts stop id 5 behind 2 tokens, before min_tokens=3"),
        ({"top_logprobs": 41}, r"top_logprobs=41 lies outside 0\.\.40"),
        ({"top_logprobs": -1}, r"top_logprobs=-1 lies outside 0\.\.40"),
    ],
)
def test_requests_are_refused_by_field_and_limit_and_disturb_nobody(
    latent: Transformer, fields: Mapping[str, Any], message: str
) -> None:
    engine = Engine(latent, rows=2)
    good = Request([1, 2], SamplingConfig(max_tokens=6, min_tokens=3), seed=0, stop_ids=frozenset({5}))
    (expected,) = engine.generate([good])[0]
    number = engine.submit(good)
    pieces = engine.step()
    with pytest.raises(ValueError, match=message):
        engine.submit(replace(good, **fields))
    while engine.busy:
        pieces += engine.step()
    assert pieces == [replace(expected, request=number)]


def test_forced_tokens_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"forced\.tokens is empty"):
        Forced(tokens=())
    with pytest.raises(ValueError, match=r"forced\.after=-1 is negative"):
        Forced(tokens=(1,), after=-1)
