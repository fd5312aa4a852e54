"""Clients of other makers, in an environment of their own: litellm wants another openai than these tests.

Name its interpreter: python -m venv clients && clients/bin/pip install litellm langchain-deepseek, then
FATHOM_CLIENTS=clients/bin/python pytest -m slow tests/serve/test_clients.py
"""

import json
import os
import subprocess
from typing import Any

import pytest

PYTHON = os.environ.get("FATHOM_CLIENTS")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PYTHON is None, reason="needs FATHOM_CLIENTS; see above")]
WANTED = {"thinking": "8+4=12,12-2=10", "answer": "<answer>8+4-2</answer>"}

LITELLM = """
import json, sys, litellm
fields = dict(model=sys.argv[2] + "/tiny/model", api_base=sys.argv[1] + "/v1", api_key="none", temperature=0,
              messages=[{"role": "user", "content": "8,2,4:10"}])
whole = litellm.completion(**fields).choices[0].message
parts = [chunk.choices[0].delta for chunk in litellm.completion(**fields, stream=True)]
said = "".join(part.content or "" for part in parts)
thought = "".join(getattr(part, "reasoning_content", None) or "" for part in parts)
print(json.dumps([
    {"thinking": whole.reasoning_content, "answer": whole.content},
    {"thinking": thought, "answer": said},
]))
"""
LANGCHAIN = """
import json, sys
from langchain_deepseek import ChatDeepSeek
model = ChatDeepSeek(model="tiny/model", api_base=sys.argv[1] + "/v1", api_key="none", temperature=0)
whole = model.invoke("8,2,4:10")
parts = list(model.stream("8,2,4:10"))
said = "".join(part.content for part in parts)
thought = "".join(part.additional_kwargs.get("reasoning_content", "") for part in parts)
print(json.dumps([
    {"thinking": whole.additional_kwargs["reasoning_content"], "answer": whole.content},
    {"thinking": thought, "answer": said},
]))
"""


def replies(program: str, *words: str) -> Any:
    command = [str(PYTHON), "-c", program, *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "deepseek"])
def test_litellm(shared: Any, provider: str) -> None:
    assert replies(LITELLM, shared.url, provider) == [WANTED, WANTED]


def test_langchain_deepseek(shared: Any) -> None:
    assert replies(LANGCHAIN, shared.url) == [WANTED, WANTED]
