"""Talking to a trained model: replies for scripts, and a conversation in the terminal whose answers are checked."""

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from fathom.chain.batch import answer_file
from fathom.chain.introduction import introduce
from fathom.chain.puzzle import explain, read_problem, warn
from fathom.checkpoint.find import holds_weights
from fathom.config import Config, SamplingConfig
from fathom.infer import Engine, offline
from fathom.infer.speaker import Speaker, load_speaker
from fathom.parallel.world import World, launch
from fathom.runs import Run
from fathom.tasks import Problem, build
from fathom.text.chat import ANSWER, ANSWER_END, THINK_END, parse_reply

ROWS = 256  # replies written together
MOST_NAMED = 10  # bad lines spelled out
OFFERS = 3
INDENT = "  "
LABEL = 10  # columns of the words in front of thinking and answer


def generate(
    run: Run, prompts: Sequence[str], sampling: SamplingConfig, n: int = 1, seed: int | None = None, int8: bool = False
) -> Iterator[str]:
    """`n` replies to each prompt, in their order, thinking included.

    `run` may also be the directory of a checkpoint with a tokenizer. Models that know Fathom's chat template are
    asked in it; others continue the prompt as plain text.
    """
    engine = offline.Engine(open_speaker(run), rows=min(ROWS, max(1, n * len(prompts))), int8=int8)
    for replies in engine.generate(prompts, n=n, seed=seed, **vars(sampling)):
        yield from (reply.text for reply in replies)


def generate_file(run: Run, source: Path, output: Path, sampling: SamplingConfig, seed: int, int8: bool = False) -> str:
    """Answer a file of prompts into another; what to say of it. Raises ValueError if a line had to be left out."""
    engine = offline.Engine(open_speaker(run), rows=ROWS, int8=int8)
    tally = answer_file(engine, source, output, sampling, seed, Console(stderr=True))
    said = f"{output}: {tally.written} answered" + (f", {tally.kept} were there" if tally.kept else "")
    if tally.bad:
        shown = ", ".join(map(str, tally.bad[:MOST_NAMED])) + (", ..." if len(tally.bad) > MOST_NAMED else "")
        raise ValueError(
            f"{said}; left out {len(tally.bad)} of {source}, line {shown}: mend them and repeat the command"
        )
    return said


def open_speaker(run: Run) -> Speaker:
    """The newest model of a run, or of the checkpoint whose directory `run` names, on the run's device."""

    def load(world: World) -> Speaker:
        return load_speaker(run.path, world.device)

    return launch(1, "auto" if holds_weights(run.path) else run.config.device, load)


def chat(run: Run, sampling: SamplingConfig) -> None:
    """Converse until an empty line, `exit` or the end of the input; Ctrl-C stops the answer that is being written."""
    if holds_weights(run.path):
        raise ValueError(
            f"{run.path} is a checkpoint without the records of a run, so nothing says what it learned; "
            f"ask it with `fathom generate {run.path} PROMPT`, or chat with the run that made it"
        )
    config = run.config
    speaker = open_speaker(run)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(introduce(run))
    Conversation(console, config, speaker, sampling).hold()


class Conversation:
    """Problems from standard input, answers on the console."""

    def __init__(self, console: Console, config: Config, speaker: Speaker, sampling: SamplingConfig) -> None:
        self.console, self.speaker, self.sampling = console, speaker, sampling
        self.config, self.task = config.task, build(config.task)
        self.engine = Engine(speaker.model, rows=1)
        self.rng = random.Random()
        self.offers = [self._held_out() for _ in range(OFFERS)]

    def hold(self) -> None:
        """Answer line after line."""
        forms = "or type your own" + (", such as `make 10 from 8 2 4`" if self.config.kind == "countdown" else "")
        self.console.print(f"Pick a held-out problem by its number, {forms}; an empty line ends.")
        self._offer()
        while True:
            line = read_line(self.console, "> ")
            if line in ("", "exit"):
                return
            problem = self._choose(line)
            if problem is None:
                self._say(f"That is no problem of its task; give 1, 2 or 3, or one like {self.offers[0].question}.")
                continue
            if warning := warn(problem, self.config):
                self._say(warning, "yellow")
            self._answer(problem)
            if line in ("1", "2", "3"):
                self._offer()

    def _held_out(self) -> Problem:
        return self.task.sample(self.rng, held_out=True)

    def _offer(self) -> None:
        self.console.print("\n" + INDENT + "   ".join(f"{k}) {p.question}" for k, p in enumerate(self.offers, 1)))

    def _choose(self, line: str) -> Problem | None:
        """An offered problem, in whose place a new one comes, or one read from the line."""
        if line in ("1", "2", "3"):
            chosen, self.offers[int(line) - 1] = self.offers[int(line) - 1], self._held_out()
            return chosen
        return read_problem(line, self.task)

    def _answer(self, problem: Problem) -> None:
        try:
            tokens, cut = self._stream(problem)
        except KeyboardInterrupt:
            self._say("stopped", "yellow")
            return
        except ValueError as error:  # such as a problem longer than the model's context
            self._say(str(error), "yellow")
            return
        right, reason = explain(self.task, problem, parse_reply(self.speaker.read(tokens)).answer)
        if cut:
            reason += f" (it was cut off after {len(tokens)} tokens)"
        self._say(f"{'right' if right else 'wrong'}: {reason}", "green" if right else "red")

    def _stream(self, problem: Problem) -> tuple[list[int], bool]:
        """Show the reply token by token; its tokens, and whether it was cut at max_tokens."""
        show, tokens, cut = ReplyPrinter(self.console, self.speaker), list[int](), False
        try:
            for piece in self.engine.stream(self.speaker.ask(problem.question, self.sampling)):
                tokens += piece.tokens
                cut = piece.finish == "length"
                for token in piece.tokens:
                    show.token(token)
        finally:
            show.end_line()
            self.engine.clear()
        return tokens, cut

    def _say(self, sentence: str, style: str = "") -> None:
        self.console.print(INDENT + sentence, style=style)


class ReplyPrinter:
    """Prints a reply as it comes: the thinking dim, the answer bold, each on a line of its own."""

    def __init__(self, console: Console, speaker: Speaker) -> None:
        self.console, self.stops = console, speaker.stop_ids
        tags = (THINK_END, ANSWER, ANSWER_END)
        self.think_end, self.answer, self.answer_end = map(speaker.tokenizer.id_of, tags)
        self.stream = speaker.tokenizer.stream()
        self.label, self.style = "thinking", "dim"
        self.line_begun = False

    def token(self, token: int) -> None:
        """Print what one more token says."""
        if token == self.answer:
            self._begin("answer", "bold")
        elif token in (self.think_end, self.answer_end):
            self._begin("", "")
        elif token not in self.stops:
            self._write(self.stream.step(token))

    def end_line(self) -> None:
        """Go to a new line unless there already."""
        if self.line_begun:
            self.console.print()
        self.line_begun = False

    def _begin(self, label: str, style: str) -> None:
        self.end_line()
        self.label, self.style = label, style

    def _write(self, text: str) -> None:
        if text and not self.line_begun:
            self.console.print(INDENT + self.label.ljust(LABEL), style="dim", end="")
            self.line_begun = True
        self.console.print("".join(map(show_character, text)), style=self.style, end="")


def show_character(character: str) -> str:
    """What the terminal gets of a character: a model can put together control sequences that it must not obey."""
    if character == "\n":
        return "\n" + INDENT + " " * LABEL
    return character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"


def read_line(console: Console, prompt: str) -> str:
    """The next line without its surrounding space; empty where the input ends. Lines of a file are shown, as typed."""
    try:
        if sys.stdin.isatty():
            return console.input(prompt).strip()
        line = sys.stdin.readline().strip()
        console.print(prompt + line)
    except (EOFError, KeyboardInterrupt):
        console.print()
        return ""
    return line
