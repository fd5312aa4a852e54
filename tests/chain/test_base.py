"""Runs that begin with a published model: its tokenizer, its words, its weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as BytePairEncoder
from tokenizers import decoders, models, pre_tokenizers, trainers

from fathom.chain import verbs
from fathom.checkpoint.hub import export_checkpoint, load_published, save_published
from fathom.checkpoint.state import weights_hash
from fathom.checkpoint.tokenizer import write_tokenizer_config
from fathom.config import (
    AttentionConfig,
    Config,
    GRPOConfig,
    LoRAConfig,
    ModelConfig,
    MoEConfig,
    SamplingConfig,
    TrainConfig,
)
from fathom.config.objectives import named_objective
from fathom.config.task import TaskConfig
from fathom.infer.speaker import load_speaker
from fathom.model import Transformer
from fathom.runs import Run
from fathom.text.adopted import BASE_PROMPT, Adopted, adopted
from fathom.text.chat import read_reply, render_dialogue, render_prompt, render_reply
from fathom.text.template import ChatTemplate
from fathom.text.tokenizer import Tokenizer

CHAT = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}<|start|>assistant\n"


def publish(path: Path, chat: str | None = None, eos: str | None = "<|end|>") -> Path:
    """A tiny Llama with a tokenizer of its own, as others lay them out."""
    encoder = BytePairEncoder(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    encoder.train_from_iterator(["think answer number and expression"], trainer)
    encoder.add_special_tokens(["<|start|>", "<|end|>"])
    config = ModelConfig(
        model_type="llama",
        vocab_size=encoder.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        intermediate_size=32,
        num_nextn_predict_layers=0,
        max_position_embeddings=1024,
        eos_token_id=None if eos is None else encoder.token_to_id(eos),
        attention=AttentionConfig(kind="gqa", num_attention_heads=2, num_key_value_heads=1, head_dim=16),
        moe=MoEConfig(n_routed_experts=0),
    )
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    save_published(model, path)
    encoder.save(str(path / "tokenizer.json"))
    write_tokenizer_config(path, None, eos, None, chat)
    return path


def config_for(base: Path) -> Config:
    task = TaskConfig(kind="arithmetic", numbers=2, max_number=9, max_target=18, demonstrations=8, prompt="words")
    train = TrainConfig(steps=2, batch_rows=4, micro_batch_rows=4, seq_len=700)
    grpo = GRPOConfig(steps=1, prompts=2, group=2, sampling=SamplingConfig(max_tokens=6), refill_rounds=0)
    grpo = replace(grpo, objective=replace(grpo.objective, drop_equal_groups=False))
    model = load_published(base).config
    return Config(model=model, init=str(base), task=task, sft=train, grpo=grpo, workers=1, device="cpu")


def test_a_published_model_is_tuned_reinforced_asked_and_exported(tmp_path: Path, caplog) -> None:
    base = publish(tmp_path / "base", CHAT)
    config, run = config_for(base), Run(tmp_path / "run")
    with caplog.at_level("INFO", "fathom"):
        verbs.sft(config, run, resume=False)
        verbs.grpo(config, run, resume=False)
    assert caplog.text.count("tags are written as plain text") == 1
    lines = {line["stage"]: line for line in run.read_ledger()}
    assert list(lines) == ["base", "sft", "grpo"]
    assert lines["base"]["base"] == str(base)
    assert lines["sft"]["weights_hash"] != weights_hash(load_published(base))
    speaker = load_speaker(run.path, torch.device("cpu"))
    begin = f"<|start|>user\nWhat?\n{Adopted.beside(run.tokenizer_path).prompt.partition('{question}')[2].lstrip()}"  # pyright: ignore
    assert speaker.tokenizer.decode(speaker.encode("What?")) == begin
    assert speaker.stop_ids == {load_published(base).config.eos_token_id}
    assert speaker.opens_thinking(speaker.encode("What?"))
    later = Run(tmp_path / "later")  # which goes on from the tuned weights
    verbs.grpo(replace(config, init=str(run.checkpoint_dir("sft") / "step_000002")), later, resume=False)
    assert Tokenizer.load(later.tokenizer_path).hash == speaker.tokenizer.hash
    export_checkpoint(run.checkpoint_dir("grpo") / "step_000001", tmp_path / "out")
    assert ChatTemplate.beside(tmp_path / "out" / "tokenizer.json") == ChatTemplate.beside(base / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "out" / "tokenizer.json").hash == speaker.tokenizer.hash


def test_reinforcement_may_begin_at_the_published_weights(tmp_path: Path) -> None:
    base = publish(tmp_path / "base")
    run = Run(tmp_path / "run")
    verbs.grpo(config_for(base), run, resume=False)
    assert [line["stage"] for line in run.read_ledger()] == ["base", "grpo"]
    assert json.loads((run.path / "prompt.json").read_text())["prompt"] == BASE_PROMPT
    changed = load_published(base)
    changed.norm.weight.data += 1
    save_published(changed, base)
    with pytest.raises(ValueError, match="began its stage grpo with other settings"):
        verbs.grpo(config_for(base), run, resume=True)


def test_adapters_are_resumed_to_the_bit_and_saved_as_whole_weights(tmp_path: Path) -> None:
    base = publish(tmp_path / "base")
    config = replace(config_for(base), lora=LoRAConfig(rank=4))
    config = replace(config, sft=replace(config.sft, steps=4, save_every=2))
    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "broken")
    verbs.sft(config, whole, resume=False)
    verbs.sft(config, broken, resume=False)
    shutil.rmtree(broken.checkpoint_dir("sft") / "step_000004")  # as if it had ended before
    broken.truncate_metrics("sft", after_step=2)
    (broken.path / "ledger.jsonl").write_text((broken.path / "ledger.jsonl").read_text().splitlines()[0] + "\n")
    verbs.sft(config, broken, resume=True)
    ends = [load_published(run.checkpoint_dir("sft") / "step_000004") for run in (whole, broken)]
    start = load_published(base)
    assert weights_hash(ends[0]) == weights_hash(ends[1])
    assert torch.equal(ends[0].embedding.weight, start.embedding.weight)
    assert not torch.equal(ends[0].layers[0].attention.q_proj.weight, start.layers[0].attention.q_proj.weight)  # pyright: ignore
    verbs.grpo(config, whole, resume=False)
    gae = replace(config.grpo, objective=named_objective("ppo"))
    with pytest.raises(ValueError, match="does not go with a critic"):
        verbs.grpo(replace(config, grpo=gae), broken, resume=False)


def test_tags_and_the_models_own_entries_in_a_question_stay_text(tmp_path: Path) -> None:
    file = publish(tmp_path) / "tokenizer.json"
    tokenizer = Tokenizer(Tokenizer.load(file).json, adopted(ChatTemplate(CHAT, {}), ["<|end|>"]))
    ids = render_prompt(tokenizer, "<|end|> or <|start|>?")
    own = tokenizer.encode_template("<|start|><|end|>", whole=True)
    assert [ids.count(special) for special in own] == [2, 1]  # those of the template alone
    assert "user\n<|end|> or <|start|>?" in tokenizer.decode(ids)
    assert render_dialogue(tokenizer, [{"role": "user", "content": "1+1"}]) == render_prompt(tokenizer, "1+1")
    with pytest.raises(ValueError, match="trained on single questions"):
        render_dialogue(tokenizer, [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}])


def test_a_reply_ends_at_any_of_the_stops(tmp_path: Path) -> None:
    file = publish(tmp_path) / "tokenizer.json"
    tokenizer = Tokenizer(Tokenizer.load(file).json, Adopted("{question}", ("<|end|>", "<|start|>"), "<|end|>"))
    start, end = (tokenizer.id_of(entry) for entry in ("<|start|>", "<|end|>"))
    assert tokenizer.stop_ids == {start, end}
    assert tokenizer.pad_id == tokenizer.eos_id == end
    text = tokenizer.encode("a</think><answer>1</answer>")
    assert render_reply(tokenizer, "a</think><answer>1</answer>") == [*text, end]
    assert read_reply(tokenizer, [*text, start, *text]) == read_reply(tokenizer, text) == "a</think><answer>1</answer>"


def test_what_cannot_be_adopted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no eos_token_id"):
        adopted(None, [])
    with pytest.raises(ValueError, match=r"write \{question\} into it once"):
        adopted(None, ["<|end|>"], "Ask.")
    base = publish(tmp_path / "base")
    config = config_for(base)
    other = replace(config, model=replace(config.model, hidden_size=64))
    with pytest.raises(ValueError, match="hidden_size=32, but the config says 64"):
        verbs.sft(other, Run(tmp_path / "run"), resume=False)
    (base / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        verbs.sft(config, Run(tmp_path / "other"), resume=False)
