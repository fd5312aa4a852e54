"""Clients of other makers, in an environment of their own: litellm wants another openai than these tests.

Name its interpreter, as .ci/run does: python -m venv clients; clients/bin/pip install litellm langchain-deepseek;
FATHOM_CLIENTS=clients/bin/python pytest -m clients
"""

import json
import os
import subprocess
from typing import Any

import pytest

PYTHON = os.environ.get("FATHOM_CLIENTS")
absent = pytest.mark.skipif(PYTHON is None, reason="needs FATHOM_CLIENTS; see above")
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


@absent
@pytest.mark.clients
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "deepseek"])
def test_litellm(shared: Any, provider: str) -> None:
    assert replies(LITELLM, shared.url, provider) == [WANTED, WANTED]


@absent
@pytest.mark.clients
def test_langchain_deepseek(shared: Any) -> None:
    assert replies(LANGCHAIN, shared.url) == [WANTED, WANTED]


def as_open_webui(raw: str) -> tuple[str, str, dict[str, Any]]:
    """Thinking, answer and usage as Open WebUI 0.12.4 takes them from a stream; it cannot be installed beside this.

    It reads reasoning_content, else reasoning, else thinking, and content; an inline <think> at the start; it merges a
    top-level `timings` into the usage by dict.update, which a null breaks.
    """
    thinking, answer, usage = "", "", dict[str, Any]()
    for line in raw.splitlines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        event = json.loads(data)
        usage.update(event.get("usage") or {})
        if "timings" in event:
            usage.update(event["timings"])
        for choice in event.get("choices", []):
            delta = choice["delta"]
            answer += delta.get("content") or ""
            thinking += delta.get("reasoning_content") or delta.get("reasoning") or delta.get("thinking") or ""
    if answer.startswith("<think>"):
        inline, _, answer = answer.removeprefix("<think>").partition("</think>")
        thinking += inline
    return thinking, answer, usage


@pytest.mark.parametrize("more", [{}, {"separate_reasoning": False}])
def test_open_webui(shared: Any, more: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "8,2,4:10"}], "temperature": 0, "stream": True} | more
    raw = shared.http.post("/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}}).text
    thinking, answer, usage = as_open_webui(raw)
    assert {"thinking": thinking, "answer": answer} == WANTED
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert '"timings":null' not in raw
