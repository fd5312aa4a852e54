"""Prompts in, completions out: the offline interface against the engine below it, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fathom import Engine
from fathom.checkpoint.hub import save_published
from fathom.config import AttentionConfig, ModelConfig, MoEConfig, SamplingConfig
from fathom.infer import engine as batching
from fathom.infer.offline import Completion, choose, seed_of
from fathom.infer.request import Request
from fathom.model import Transformer
from fathom.text.chat import parse_reply, render_dialogue, render_prompt, render_reply
from fathom.text.template import ChatTemplate
from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer

PROMPTS = ["8,2,4:10", "3,9:12", "1"]
SAMPLING = {"temperature": 0.9, "top_p": 0.8, "max_tokens": 6}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, whose texts are noise, with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    attention = AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    )
    config = ModelConfig(
        vocab_size=MINIMUM_VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        initializer_range=0.2,
        max_position_embeddings=64,
        num_nextn_predict_layers=0,
        attention=attention,
        moe=MoEConfig(n_routed_experts=0),
    )
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    save_published(model, path)
    Tokenizer.train([], MINIMUM_VOCABULARY).save(path / "tokenizer.json")
    return path


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    return Engine(checkpoint, rows=4, device="cpu")


def test_completions_are_those_of_the_engine_below(engine: Engine) -> None:
    found = engine.generate(PROMPTS, n=3, seed=5, **SAMPLING)
    requests = [
        Request(
            render_prompt(engine.tokenizer, prompt),
            SamplingConfig(**SAMPLING),
            seed_of(5, place),
            frozenset({engine.tokenizer.eos_id}),
            n=3,
        )
        for place, prompt in enumerate(PROMPTS)
    ]
    wanted = batching.Engine(engine.model, rows=9).generate(requests)
    assert [[c.tokens for c in each] for each in found] == [[p.tokens for p in each] for each in wanted]
    assert [[c.finish for c in each] for each in found] == [[p.finish for p in each] for each in wanted]
    assert found[0][0].text == "<think>" + engine.speaker.read(found[0][0].tokens)
    assert len({c.text for each in found for c in each}) == 9


def test_a_seed_fixes_the_text_and_none_does_not(engine: Engine) -> None:
    assert engine.ask("1", seed=3, **SAMPLING) == engine.ask("1", seed=3, **SAMPLING)
    assert len({engine.ask("1", **SAMPLING).text for _ in range(3)}) == 3


def test_a_stream_is_the_text_in_parts(engine: Engine) -> None:
    parts = list(engine.stream("8,2,4:10", seed=3, **SAMPLING))
    assert len(parts) > 1
    assert "".join(parts) == engine.ask("8,2,4:10", seed=3, **SAMPLING).text


def test_completions_come_as_they_finish_and_a_refused_request_disturbs_none(engine: Engine) -> None:
    def request(max_tokens: int, n: int = 1, prompt: tuple[int, ...] = (1, 3)) -> Request:
        law = SamplingConfig(temperature=0.9, max_tokens=max_tokens)
        return Request(prompt, law, seed=max_tokens, stop_ids=frozenset(), n=n)

    requests = [request(40), request(3, n=2), request(999), request(2, prompt=(1, 10**6)), request(5)]
    found = list(engine.complete(iter(requests)))
    assert sorted(place for place, _ in found) == [0, 1, 2, 3, 4]
    assert found[-1][0] == 0  # the longest came first and finished last
    refused = {place: str(outcome) for place, outcome in found if isinstance(outcome, ValueError)}
    assert set(refused) == {2, 3} and "max_tokens=999" in refused[2] and "token id 1000000" in refused[3]
    for place, outcome in found:
        if not isinstance(outcome, ValueError):
            alone = batching.Engine(engine.model, rows=2).generate([requests[place]])[0]
            assert [c.tokens for c in outcome] == [piece.tokens for piece in alone]


def test_requests_are_taken_up_a_few_at_a_time(engine: Engine) -> None:
    taken: list[int] = []

    def requests() -> object:
        for place in range(1000):
            taken.append(place)
            yield Request((1, 3), SamplingConfig(max_tokens=2), seed=place, stop_ids=frozenset())

    outcomes = engine.complete(requests())  # pyright: ignore
    next(outcomes)
    assert len(taken) <= 2 * engine.rows + 1
    outcomes.close()
    assert engine.ask("1", max_tokens=2, seed=0).tokens  # nothing is left in flight


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temprature": 1.0}, "'temprature' is no field of sampling; did you mean temperature?"),
        ({"zzz": 1.0}, "the fields are temperature, top_p"),
        ({"temperature": "hot"}, "temperature='hot' is not a number; give one"),
        ({"temperature": float("nan")}, "temperature=nan is not a number"),
        ({"temperature": -1}, "temperature=-1 is not a finite number of at least 0"),
        ({"max_tokens": 2.5}, "max_tokens=2.5 is not a whole number"),
        ({"max_tokens": True}, "max_tokens=True is not a whole number"),
        ({"max_tokens": 60}, "shorten the prompt or lower max_tokens"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(engine: Engine, fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
        engine.generate(["1", "8,2,4:10"], **fields)
    with pytest.raises(ValueError, match="takes a list of prompts"):
        engine.generate("8,2,4:10")
    assert engine.ask("1", max_tokens=2, seed=0).tokens


def test_choose_leaves_other_fields_alone() -> None:
    assert choose(SamplingConfig(top_k=3), {"temperature": 0}) == SamplingConfig(top_k=3, temperature=0)


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>8+4=12</think><answer>8+4-2</answer>", "8+4=12", "8+4-2"),
        ("<think>\na\n</think>\n\nIt is \\boxed{5}.", "a", "5"),
        ("a</think>\\boxed{5}", "a", "5"),
        ("<think>no end \\boxed{5}", "no end \\boxed{5}", None),
        ("It is \\boxed{5}.", "", "5"),
    ],
)
def test_a_completion_tells_thinking_from_answer(text: str, thinking: str, answer: str | None) -> None:
    completion = Completion(text, [1], [0.0], "stop")
    assert (completion.thinking, completion.answer) == (thinking, answer)


def test_a_dialogue_is_its_turns_in_the_template(engine: Engine) -> None:
    tokenizer, reply = engine.tokenizer, "8+4=12</think><answer>8+4</answer>"
    messages = [
        {"role": "user", "content": "8,4:12"},
        {"role": "assistant", "content": "<think>" + reply},
        {"role": "user", "content": "<|eos|>1"},
    ]
    turns = [*render_prompt(tokenizer, "8,4:12"), *render_reply(tokenizer, reply)]
    assert render_dialogue(tokenizer, messages) == turns + render_prompt(tokenizer, "<|eos|>1")[1:]
    messages[1]["content"] = "no reply <|user|> at all"
    assert not parse_reply(messages[1]["content"]).well_formed
    assert render_dialogue(tokenizer, messages).count(tokenizer.id_of("<|user|>")) == 2
    for wrong in ([], messages[:2], messages[1:], [{"role": "system", "content": "x"}]):
        with pytest.raises(ValueError, match="user and assistant in turns, the user first and last"):
            engine.generate([wrong])


def test_a_published_template_renders_in_a_sandbox(tmp_path: Path) -> None:
    source = (
        "{{ bos_token }}{%- for m in messages %}\n  {%- if m['role'] == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}\n[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
    )
    config = {"chat_template": source, "bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.beside(tmp_path / "tokenizer.json")
    assert template is not None
    assert template.render([{"role": "user", "content": " hi "}]) == "<s>[user] hi\n[assistant]<think>\n"
    with pytest.raises(ValueError, match="no tools"):
        template.render([{"role": "tool", "content": ""}])
    spy = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}", {})
    with pytest.raises(ValueError, match="cannot put these messages"):
        spy.render([])
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }}")
    assert ChatTemplate.beside(tmp_path / "tokenizer.json") == ChatTemplate("{{ messages | length }}", template.tokens)
    assert ChatTemplate.beside(tmp_path / "elsewhere" / "tokenizer.json") is None


def test_fathom_alone_does_not_import_torch() -> None:
    program = "import sys, fathom; fathom.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert "Engine" in __import__("fathom").__all__
    with pytest.raises(ImportError):
        from fathom import Motor  # noqa: F401  # pyright: ignore
