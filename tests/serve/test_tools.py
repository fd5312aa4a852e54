"""Tool calls in DeepSeek's form, from a model that has learned one dialogue with a tool by heart."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

from fathom.checkpoint.state import save_checkpoint
from fathom.infer.speaker import load_speaker
from fathom.serve.options import ServeOptions
from fathom.serve.tools import CallReader
from fathom.text.special import SPECIAL_TOKENS
from fathom.text.template import ChatTemplate
from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer

PUBLISHED = {
    "<|bos|>": "<｜begin▁of▁sentence｜>",
    "<|eos|>": "<｜end▁of▁sentence｜>",
    "<|user|>": "<｜User｜>",
    "<|assistant|>": "<｜Assistant｜>",
    "<answer>": "<｜tool▁calls▁begin｜>",
    "</answer>": "<｜tool▁calls▁end｜>",
    "<|fim_begin|>": "<｜tool▁call▁begin｜>",
    "<|fim_hole|>": "<｜tool▁call▁end｜>",
    "<|fim_end|>": "<｜tool▁sep｜>",
}
TEMPLATE = """{{ bos_token }}{% if tools is defined %}{% for tool in tools %}{{ tool.function.name }}
{% endfor %}{% endif %}
{% for m in messages %}
{% if m.role == 'user' %}<｜User｜>{{ m.content }}
{% elif m.role == 'tool' %}<｜User｜>={{ m.content }}
{% elif m.tool_calls is defined %}<｜Assistant｜>{{ m.content or '' }}<｜tool▁calls▁begin｜>{% for c in m.tool_calls -%}
<｜tool▁call▁begin｜>{{ c.type }}<｜tool▁sep｜>{{ c.function.name }}
```json
{{ c.function.arguments }}
```<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>{{ eos_token }}
{% else %}<｜Assistant｜>{{ m.content }}{{ eos_token }}
{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"""
ONE = "<｜tool▁call▁begin｜>{}<｜tool▁call▁end｜>"
ALL = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
CALL = ALL.replace("{}", ONE.replace("{}", "function<｜tool▁sep｜>add\n```json\n{ARGS}\n```"))
ARGS = '{"a":8,"b":2}'
TOOLS: list[Any] = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
USER = {"role": "user", "content": "8+2"}
CALLED = "I add." + CALL.replace("{ARGS}", ARGS)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tools: Any) -> Iterator[Any]:
    """A server of a published checkpoint: other special tokens, and a template of its own."""
    path = tmp_path_factory.mktemp("published")
    text = Tokenizer.train([], MINIMUM_VOCABULARY).json
    for ours in SPECIAL_TOKENS:
        text = text.replace(json.dumps(ours), json.dumps(PUBLISHED.get(ours, ours), ensure_ascii=False))
    tokenizer = Tokenizer(text)
    ends = tokenizer.id_of(PUBLISHED["<|eos|>"])
    template = ChatTemplate(TEMPLATE, {"bos_token": PUBLISHED["<|bos|>"], "eos_token": PUBLISHED["<|eos|>"]})
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": ARGS}}
    dialogues = [[USER], [USER, {"role": "assistant", "content": "I add.", "tool_calls": [call]}]]
    dialogues[1].append({"role": "tool", "content": "10", "tool_call_id": "x"})
    prompts = [tokenizer.encode_template(template.render(each, tools=TOOLS), whole=True) for each in dialogues]
    replies = [[*tokenizer.encode_template(reply, whole=True), ends] for reply in (CALLED, "It is 10.")]
    model = tools.untrained(eos_token_id=ends)
    tools.learn_by_heart(model, list(zip(prompts, replies, strict=True)), ends)
    save_checkpoint(path / "run", 1, model, {"step": torch.zeros(1)}, {"stage": "sft"}, keep=1)
    step = next((path / "run").iterdir())
    tokenizer.save(step / "tokenizer.json")
    (step / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    names = {"bos_token": PUBLISHED["<|bos|>"], "eos_token": PUBLISHED["<|eos|>"]}
    (step / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    served = tools.Served(load_speaker(step, torch.device("cpu")), step, ServeOptions(device="cpu", rows=2))
    yield served
    served.close()


def ask(served: Any, messages: list[Any], **fields: Any) -> Any:
    law = {"model": "tiny/model", "temperature": 0, "max_tokens": 90, "tools": TOOLS}
    return served.openai.chat.completions.create(messages=messages, **law | fields)


def test_a_call_goes_round(published: Any) -> None:
    choice = ask(published, [USER]).choices[0]
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I add.")
    assert (call.type, call.function.name) == ("function", "add")
    assert json.loads(call.function.arguments) == {"a": 8, "b": 2}
    result = {"role": "tool", "tool_call_id": call.id, "content": "10"}
    after = ask(published, [USER, choice.message, result]).choices[0]
    assert (after.message.content, after.message.tool_calls, after.finish_reason) == ("It is 10.", None, "stop")


def test_a_streamed_call_has_its_index(published: Any) -> None:
    with published.openai.chat.completions.stream(
        model="tiny/model", messages=[USER], temperature=0, max_tokens=90, tools=TOOLS
    ) as stream:
        deltas = [d for event in stream if event.type == "chunk" for d in event.chunk.choices[0].delta.tool_calls or ()]
        final = stream.get_final_completion().choices[0]
    assert {delta.index for delta in deltas} == {0}
    assert json.loads("".join(delta.function.arguments for delta in deltas)) == {"a": 8, "b": 2}
    assert (final.finish_reason, final.message.content) == ("tool_calls", "I add.")
    assert final.message.tool_calls[0].function.name == "add"


def test_without_tools_the_text_stays(published: Any) -> None:
    choice = ask(published, [USER], tool_choice="none").choices[0]
    assert choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_cannot_be_forced(published: Any, choice: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(published, [USER], tool_choice=choice)
    assert refused.value.param == "tool_choice"


def test_a_template_without_tools_refuses_them(shared: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="no tools") as refused:
        ask(shared, [USER])
    assert refused.value.param == "tools"


BARE = [ONE.replace("{}", "add<｜tool▁sep｜>{ARGS}"), ONE.replace("{}", "sub<｜tool▁sep｜>{}")]
V31 = ALL.replace("{}", "\n".join(BARE), 1)


@pytest.mark.parametrize(
    ("text", "answer", "calls"),
    [
        ("a" + CALL.replace("{ARGS}", ARGS) + "b", "ab", [("add", ARGS)]),
        ("a" + V31.replace("{ARGS}", ARGS), "a", [("add", ARGS), ("sub", "{}")]),
        ("a<｜tool", "a<｜tool", []),
        ("", "", []),
    ],
)
def test_calls_are_read_wherever_they_are_cut(text: str, answer: str, calls: list[Any]) -> None:
    for first, second in itertools.combinations_with_replacement(range(0, len(text) + 1, 3), 2):
        reader = CallReader()
        parts = [reader.feed(text[:first]), reader.feed(text[first:second]), reader.feed(text[second:], ends=True)]
        assert "".join(part[0] for part in parts) == answer
        found = [call for part in parts for call in part[1]]
        assert [(call.name, call.arguments) for call in found] == calls
        assert [call.index for call in found] == list(range(len(calls)))


def test_what_is_no_call_stays_text() -> None:
    reader = CallReader()
    broken = CALL.replace("{ARGS}", '{"a":')
    answer, calls = reader.feed(broken, ends=True)
    assert calls == [] and '{"a":' in answer
    cut = CALL.replace("{ARGS}", ARGS).partition("```<")[0]
    answer, calls = CallReader().feed(cut, ends=True)
    assert calls == [] and ARGS in answer
