"""A trained model that can be asked: the newest of a run, or a checkpoint with its tokenizer."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fathom.checkpoint.find import find_checkpoint, holds_weights, newest_of_run
from fathom.checkpoint.hub import load_published
from fathom.checkpoint.tokenizer import published_stops, tokenizer_file
from fathom.config import SamplingConfig
from fathom.infer.request import Request
from fathom.model import Transformer
from fathom.runs import Run
from fathom.text.chat import THINK, render_dialogue, render_prompt
from fathom.text.shield import Shield, hide_message
from fathom.text.template import ChatTemplate
from fathom.text.tokenizer import Tokenizer

Message = Mapping[str, str]  # role and content


@dataclass(frozen=True)
class Speaker:
    """A model and the tokenizer it was trained with."""

    model: Transformer
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    uses_template: bool  # questions are put in Fathom's chat template; other models continue plain text
    sampling: SamplingConfig  # what answers are drawn with unless said otherwise
    name: str  # of the checkpoint
    chat: ChatTemplate | None = None  # the model's own, where it is not Fathom's

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """Ids of a prompt: a text, put as a question to a model that knows Fathom's template, or a dialogue.

        Raises ValueError for a dialogue where no template says how the model reads one.
        """
        if isinstance(prompt, str):
            return render_prompt(self.tokenizer, prompt) if self.uses_template else self.tokenizer.encode(prompt)
        if self.uses_template:
            return render_dialogue(self.tokenizer, prompt)
        if self.chat is None:
            raise ValueError(f"{self.name} has no chat template, so messages mean nothing to it; give a prompt")
        shield = Shield(self.tokenizer)
        return shield.encode(self.chat.render([hide_message(shield, message) for message in prompt]))

    def put(self, question: str) -> list[int]:
        """Ids of a question as the model is best asked: in its template if it has one, else as plain text."""
        return self.encode([{"role": "user", "content": question}] if self.chat else question)

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends inside the thinking, so that the completion begins there."""
        return self.tokenizer.decode(prompt[-4:]).rstrip().endswith(THINK)

    def ask(self, question: str, sampling: SamplingConfig) -> Request:
        """A request for one reply, with random numbers of its own."""
        return Request(self.encode(question), sampling, seed=secrets.randbits(48), stop_ids=self.stop_ids)

    def read(self, tokens: Sequence[int]) -> str:
        """The text of a completion without the token that ended it."""
        return self.tokenizer.decode([token for token in tokens if token not in self.stop_ids])


def load_speaker(path: Path | str, device: torch.device) -> Speaker:
    """The newest trained model of a run, or that of a checkpoint: imported, exported or of training."""
    path = Path(path)
    return speaker_of_checkpoint(path, device) if holds_weights(path) else speaker_of_run(Run(path), device)


def speaker_of_run(run: Run, device: torch.device) -> Speaker:
    """The model that the run's last finished stage left."""
    config, checkpoint = run.config, newest_of_run(run)
    tokenizer = Tokenizer.load(run.tokenizer_path)
    return Speaker(
        load_published(checkpoint, device=device),
        tokenizer,
        tokenizer.stop_ids,
        uses_template=True,
        sampling=config.grpo.sampling,
        name=f"{checkpoint.parent.name}/{checkpoint.name}",
    )


def speaker_of_checkpoint(path: Path, device: torch.device) -> Speaker:
    """The model of a checkpoint; ValueError where no tokenizer goes with it."""
    model = load_published(find_checkpoint(path), device=device)
    file = tokenizer_file(path)
    tokenizer = Tokenizer.load(file)
    ours = knows_template(tokenizer)
    return Speaker(
        model,
        tokenizer,
        tokenizer.stop_ids if ours else frozenset(published_stops(model.config, path)),
        uses_template=ours,
        sampling=SamplingConfig(),
        name=path.resolve().name,
        chat=None if ours else ChatTemplate.beside(file),
    )


def knows_template(tokenizer: Tokenizer) -> bool:
    """Whether questions to its model are put as Fathom puts them."""
    try:
        return tokenizer.eos_id not in render_prompt(tokenizer, "")
    except ValueError:  # an entry is missing
        return False
