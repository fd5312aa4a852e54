"""Runs the model over the active rows: prompts once, then one token a step, or more where drafts are checked ahead."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.infer.edits import Edits
from fathom.infer.rows import Rows
from fathom.infer.sampler import Choice, draw, draw_each, likeliest, uniform
from fathom.infer.scheduler import PREFILL_TOKENS, Admission
from fathom.infer.speculation import Drafts, Plain, Speculation
from fathom.infer.traces import Traces
from fathom.infer.verify import Rule
from fathom.model import CacheSlots, LatentCache, Transformer


class Runner:
    """A model, its cache and the rows that are being decoded. Call its methods under `torch.inference_mode`.

    With `drafts`, their count or "auto", MTP modules guess tokens ahead, which are judged by `rule`: see `Speculation`.
    """

    def __init__(
        self, model: Transformer, rows: int, capacity: int, drafts: Drafts = 0, rule: Rule = "coupled"
    ) -> None:
        weight = model.embedding.weight
        self.model, self.device = model, weight.device
        self.cache = LatentCache(model.config, rows, capacity, weight.dtype, weight.device)
        self.rows = Rows(rows, weight.device)
        self.edits = Edits(self.rows, model.config.vocab_size, weight.device)
        self.traces = Traces(self.rows, weight.device)
        self.version = 0  # of the weights
        self.row_steps = 0  # rows decoded, summed over the steps
        self._reach = 0  # the newest tokens of all active rows lie before this place
        plain = Plain(self._slots, self._logits, self._draw, self._record)
        self.speculation = (
            Speculation(model, self.rows, self.edits, self.traces, drafts, rule, plain) if drafts else None
        )

    def prefill(self, admissions: Sequence[Admission]) -> None:
        """Run each prompt once, give each of its samples a row with a copy of the cache, and draw the first tokens."""
        first, prompts = self.rows.count, [each.request.prompt for each in admissions]
        hidden = self._read(prompts, first)
        owners = [number for number, each in enumerate(admissions) for _ in each.samples]
        owner = torch.tensor(owners, device=self.device)
        if len(owners) > len(prompts):
            target = first + torch.arange(len(owners), device=self.device)
            self.cache.copy_rows(first + owner, target, hidden.shape[1])
        self.rows.add(admissions, owner)
        self.edits.admit(first)
        self._reach = max(self._reach, hidden.shape[1] + 1)
        end = self.rows.fields(first).position.clone()
        if self.speculation:
            self.speculation.admit(hidden, end, owner, first)
        state, place = hidden[owner, end].unsqueeze(1), end.unsqueeze(1) + 1
        drawn = self._draw_next(self._logits(state, place, first)[:, 0], place, first)
        self._record(drawn, first)

    def _read(self, prompts: Sequence[Sequence[int]], first: int) -> Float[Tensor, "P T D"]:
        """Fill the cache rows from `first` on with prompts; those shorter than the longest are padded behind."""
        width = max(map(len, prompts))
        tokens = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=self.device)
        places = torch.arange(width, device=self.device).expand_as(tokens)
        slots = self._slots(first, places, width, fresh=True)
        hidden = self.model(tokens, slots=slots)
        if self.speculation:
            last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
            self.speculation.read(hidden, tokens, last, first)
        return hidden

    def decode(self) -> None:
        """Draw the next token of every active row, and behind drafts that are kept those that follow."""
        self.row_steps += self.rows.count
        if self.speculation and self.speculation.decode(self._reach, self.cache.capacity):
            self._reach = self._newest_place() + 1
            return
        row = self.rows.fields()
        place = row.position.unsqueeze(1)
        slots = self._slots(0, place, self._reach)
        hidden = self.model(row.token.unsqueeze(1), slots=slots)
        self._record(self._draw_next(self._logits(hidden, place + 1)[:, 0], place + 1))
        if self.speculation:
            self.speculation.keep(hidden)
        self._reach += 1

    def _slots(self, first: int, places: Int[Tensor, "N T"], length: int, fresh: bool = False) -> CacheSlots:
        """Where the tokens of rows from `first` on at `places` are cached; they see the first `length` places."""
        return CacheSlots.at(self.cache, first, places, length, fresh)

    def _record(self, choice: Choice, first: int = 0, advance: int | Int[Tensor, " N"] = 1) -> None:
        self.rows.record(choice, first, advance)
        if self.rows.edited:
            self.edits.note(choice.token, first, advance)

    def _logits(
        self, hidden: Float[Tensor, "N T D"], places: Int[Tensor, "N T"], first: int = 0
    ) -> Float[Tensor, "N T V"]:
        """Scores of what rows first .. count - 1 put at `places`, of which traces are kept where a row asks."""
        logits = self.model.logits(hidden.flatten(0, 1)).view(*places.shape, -1)
        if self.rows.traced:
            self.traces.note(logits, places, first, self.version)
        return logits

    def _draw_next(
        self,
        logits: Float[Tensor, "N V"],
        place: Int[Tensor, "N 1"],
        first: int = 0,
        active: Bool[Tensor, " N"] | None = None,
    ) -> Choice:
        """What rows first .. count - 1 put behind the tokens recorded so far; a row that is not `active`, anything."""
        edited = self.edits.apply(logits, first, active) if self.rows.edited else None
        return _column(self._draw(logits.unsqueeze(1), place, first, edited), 0)

    def _draw(
        self,
        logits: Float[Tensor, "N T V"],
        places: Int[Tensor, "N T"],
        first: int = 0,
        edited: Float[Tensor, "N V"] | None = None,
    ) -> Choice:
        """What rows first .. count - 1 put at `places`: tokens and log-probabilities, both (N, T)."""
        scores, law = logits.flatten(0, 1), self.rows.law if edited is None else None
        if law is not None and law.temperature == 0:
            return Choice(*(each.view_as(places) for each in likeliest(scores)))
        row = self.rows.fields(first)
        uniforms = uniform(row.key.unsqueeze(1), places).flatten()
        if law is not None and not law.truncates:
            drawn = draw(scores, uniforms, law.temperature)
        else:
            temperature, top_p, min_p = self.rows.laws(first)
            laws = (each.unsqueeze(1).expand_as(places).flatten() for each in (temperature, row.top_k, top_p, min_p))
            drawn = draw_each(scores, uniforms, *laws, edited=edited)
        return Choice(*(each.view_as(places) for each in drawn))

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy `weights` over the model's; ValueError, and nothing changed, unless all names and shapes fit."""
        own = self.model.state_dict()
        if strangers := sorted(own.keys() ^ weights.keys()):
            what = "the weights lack" if strangers[0] in own else "the model has no"
            raise ValueError(f"{what} {strangers[0]}; give all weights by the names of the model's state_dict")
        for name, weight in weights.items():
            if weight.shape != own[name].shape:
                raise ValueError(
                    f"{name} has the shape {tuple(weight.shape)}, but the model's {tuple(own[name].shape)}; "
                    "give weights of the same model"
                )
        for name, weight in weights.items():
            own[name].copy_(weight)

    def reread(self) -> None:
        """Fill the cache anew, as if the present weights had read all rows' prompts and tokens."""
        rows = self.rows
        position = rows.fields().position.tolist()
        texts = [
            [*tenant.request.prompt, *rows.tokens_from(row, 0)][: position[row]]  # the newest token is not read yet
            for row, tenant in enumerate(rows.tenants)
        ]
        first = 0
        while first < len(texts):
            last = first + 1
            while last < len(texts) and max(map(len, texts[first : last + 1])) * (last + 1 - first) <= PREFILL_TOKENS:
                last += 1
            hidden = self._read(texts[first:last], first)
            if self.speculation:
                owner = torch.arange(last - first, device=self.device)
                self.speculation.admit(hidden, rows.fields().position[first:last] - 1, owner, first)
            first = last

    def drop(self, finished: Bool[Tensor, " N"]) -> None:
        """Take finished rows out; the last active ones move to their places."""
        edited, traced = self.rows.edited, self.rows.traced
        source, target = self.rows.close_ranks(finished)
        if len(target):
            self.cache.copy_rows(source, target, self._reach)
            if edited:
                self.edits.move(source, target)
            if traced:
                self.traces.move(source, target)
            if self.speculation:
                self.speculation.move(source, target)
        if self.rows.count:
            self._reach = self._newest_place() + 1
        else:
            self.clear()

    def clear(self) -> None:
        """Take all rows out."""
        self.rows.clear()
        self._reach = 0
        if self.speculation:
            self.speculation.clear()

    def _newest_place(self) -> int:
        return int(self.rows.fields().position.max())


def _column(choice: Choice, column: int) -> Choice:
    return Choice(choice.token[:, column], choice.logprob[:, column])
