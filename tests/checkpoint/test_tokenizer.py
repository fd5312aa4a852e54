"""What transformers makes of the tokenizer that goes along with an export."""

import json
import os
from pathlib import Path

import pytest

from fathom.checkpoint.tokenizer import copy_tokenizer
from fathom.text.chat import render_prompt, render_reply
from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def run_with_checkpoint(tmp_path: Path) -> tuple[Tokenizer, Path]:
    tokenizer = Tokenizer.train(["eight plus two is ten"], MINIMUM_VOCABULARY + 4)
    checkpoint = tmp_path / "run" / "sft" / "step_000050"
    checkpoint.mkdir(parents=True)
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    (tmp_path / "out").mkdir()
    return tokenizer, checkpoint


def test_transformers_renders_the_chat_as_fathom_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer, checkpoint = run_with_checkpoint(tmp_path)
    copy_tokenizer(checkpoint, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "user", "content": "8,2,4:10"}]
    prompt = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert prompt == render_prompt(tokenizer, "8,2,4:10")
    reply = "8+2=10</think><answer>8+2</answer>"
    told = theirs.apply_chat_template([*asked, {"role": "assistant", "content": reply}], return_dict=False)
    assert told == prompt + render_reply(tokenizer, reply)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert theirs.encode("ten is 123", add_special_tokens=False) == tokenizer.encode("ten is 123")


def test_a_foreign_tokenizer_gets_no_template_of_ours(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 0, "content": "<s>"}]}))
    copy_tokenizer(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokenizer.json"]
