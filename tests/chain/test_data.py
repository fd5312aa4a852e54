"""What the chain learns from: shards that fit their tokenizer, and a cold-start set of its own task."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fathom.chain.data import (
    EXPRESSIONS,
    VALIDATION,
    open_text,
    prepare_text,
    shard_path,
    solved_path,
    solved_problems,
    validation_batches,
)
from fathom.config import Config, TaskConfig, TextConfig
from fathom.runs import Run
from fathom.tasks import Problem, build
from fathom.tasks.task import is_held_out, problem_key
from fathom.text.chat import parse_reply
from fathom.text.disjoint import given_away
from fathom.text.shards import Shard, open_shard
from fathom.text.tokenizer import Tokenizer


def with_text(config: Config, **changes: object) -> Config:
    return replace(config, text=replace(config.text, **changes))  # pyright: ignore[reportArgumentType]


def prepared(config: Config, path: Path) -> tuple[Run, Tokenizer, dict[str, object]]:
    run = Run(path)
    counts = prepare_text(config, run)
    return run, Tokenizer.load(run.tokenizer_path), counts


def documents(shard: Shard, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(shard.document(n)) for n in range(shard.documents)]


def test_text_arithmetic_and_expressions_become_shards(micro: Config, tmp_path: Path) -> None:
    run, tokenizer, counts = prepared(micro, tmp_path)
    shards = open_text(micro, run, tokenizer)
    assert [shard.path.stem for shard in shards.training] == ["text", "arithmetic", "expressions"]
    assert shards.shares == pytest.approx([0.25, 0.5, 0.25])
    assert [shard.documents for shard in shards.training[1:]] == [120, 40]
    every = [*shards.training, *([shards.validation] if shards.validation else [])]
    assert counts["tokens"] == sum(len(shard.tokens) for shard in every)
    assert counts["documents_of"] == {shard.path.stem: shard.documents for shard in every}
    assert (counts["tokenizer_hash"], counts["vocabulary"]) == (tokenizer.hash, tokenizer.vocab_size)
    kept = documents(every[-1], tokenizer)
    assert kept and not set(kept) & set(documents(shards.training[0], tokenizer))


def test_no_shard_gives_a_problem_of_the_task_away(micro: Config, tmp_path: Path) -> None:
    run, tokenizer, counts = prepared(micro, tmp_path)
    texts = [text for shard in open_text(micro, run, tokenizer).training for text in documents(shard, tokenizer)]
    assert any(":" in text for text in texts)
    assert given_away(texts, micro.task) == set()
    assert counts["problems_given_away"] == 0


def test_equal_configs_give_equal_shards_and_another_seed_others(micro: Config, tmp_path: Path) -> None:
    contents: list[list[bytes]] = []
    for name, config in (("a", micro), ("b", micro), ("c", replace(micro, seed=1))):
        run, _, _ = prepared(config, tmp_path / name)
        contents.append([file.read_bytes() for file in sorted(run.shards_dir.glob("*.bin"))])
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_a_source_whose_share_is_zero_is_left_out(micro: Config, tmp_path: Path) -> None:
    config = with_text(micro, arithmetic_share=0.75)
    run, tokenizer, _ = prepared(config, tmp_path)
    shards = open_text(config, run, tokenizer)
    assert [shard.path.stem for shard in shards.training] == ["arithmetic", "expressions"]


def test_what_an_earlier_config_left_is_not_taken_along(micro: Config, tmp_path: Path) -> None:
    """A validation shard cut by the tokenizer of before would stop pretraining."""
    run, tokenizer, _ = prepared(micro, tmp_path)
    assert shard_path(run, VALIDATION).exists()
    solved_problems(micro, run, tokenizer)
    config = with_text(micro, validation_share=0.0, vocab_size=1290)
    run, tokenizer, _ = prepared(config, tmp_path)
    assert open_text(config, run, tokenizer).validation is None
    assert sorted(file.name for file in run.shards_dir.iterdir()) == ["arithmetic.bin", "expressions.bin", "text.bin"]


def test_a_tokenizer_larger_than_the_models_table_is_refused(micro: Config, tmp_path: Path) -> None:
    config = replace(micro, model=replace(micro.model, vocab_size=1280))
    with pytest.raises(ValueError, match=r"text.vocab_size=1300 exceeds model.vocab_size=1280"):
        prepared(config, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def test_shards_of_another_tokenizer_are_refused(micro: Config, tmp_path: Path) -> None:
    run, _, _ = prepared(micro, tmp_path)
    other = Tokenizer.train(["another text"], 1290)
    with pytest.raises(ValueError, match="another tokenizer"):
        open_shard(shard_path(run, EXPRESSIONS), other)


def test_validation_rows_are_shared_out_evenly(micro: Config, tmp_path: Path) -> None:
    run, tokenizer, _ = prepared(micro, tmp_path)
    shard = open_text(micro, run, tokenizer).validation
    assert shard is not None
    (whole,) = validation_batches(shard, 6, 16, 0, 1)
    halves = [validation_batches(shard, 6, 16, rank, 2)[0] for rank in range(2)]
    assert whole.tokens.shape == (6, 16)
    assert np.array_equal(np.concatenate([half.tokens for half in halves]), whole.tokens)
    (few,) = validation_batches(shard, 10_000, 16, 0, 1)
    assert len(few.tokens) == len(shard.tokens) // 16  # no row twice
    assert validation_batches(None, 6, 16, 0, 1) == []


def test_the_cold_start_set_solves_training_problems(micro: Config, tmp_path: Path) -> None:
    run, tokenizer, _ = prepared(micro, tmp_path)
    solved = solved_problems(micro, run, tokenizer)
    assert len(solved) == micro.task.demonstrations
    task = build(micro.task)
    for prompt, reply in solved[:50]:
        question = tokenizer.decode(prompt).removeprefix("<|bos|><|user|>").removesuffix("<|assistant|><think>")
        given, target = question.split(":")
        numbers = [int(number) for number in given.split(",")]
        assert not is_held_out(problem_key(numbers, int(target)), micro.task.held_out_share)
        text = tokenizer.decode(reply)
        answer = parse_reply(text).answer
        assert text.endswith("<|eos|>") and parse_reply(text).well_formed and answer is not None
        assert task.grade(Problem(question, "", tuple(numbers), int(target)), answer)
    again = solved_problems(micro, run, tokenizer)  # read, not made anew
    for one, two in zip(solved, again, strict=True):
        assert np.array_equal(one.prompt, two.prompt) and np.array_equal(one.reply, two.reply)


def test_another_task_seed_or_tokenizer_has_a_cold_start_set_of_its_own(micro: Config, tmp_path: Path) -> None:
    run, tokenizer, _ = prepared(micro, tmp_path)
    other = Tokenizer.train(["another text"], 1290)
    paths = [
        solved_path(micro, run, tokenizer),
        solved_path(replace(micro, seed=1), run, tokenizer),
        solved_path(replace(micro, task=TaskConfig(numbers=2, max_number=19)), run, tokenizer),
        solved_path(micro, run, other),
    ]
    assert len(set(paths)) == 4
    changed = replace(micro, text=TextConfig(vocab_size=1300), pretrain=replace(micro.pretrain, steps=9))
    assert solved_path(changed, run, tokenizer) == paths[0]  # it follows from neither
