"""Runs the model over the active rows: prompts once, then one token a step, or two where a draft is checked ahead."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.infer.rows import Rows
from fathom.infer.sampler import Choice, draw, draw_each, likeliest, uniform
from fathom.infer.scheduler import Admission
from fathom.model import CacheSlots, LatentCache, Transformer


class Runner:
    """A model, its cache and the rows that are being decoded. Call its methods under `torch.inference_mode`.

    With `drafts` MTP module 0 guesses the token behind the newest one, and one pass over both draws what follows each
    (V3 5.4.3). The guess is kept where it equals the token drawn in its place, so texts do not depend on drafts. The
    cache entry of a wrong guess is hidden by its position until that place is reached and written over.
    """

    def __init__(self, model: Transformer, rows: int, capacity: int, drafts: bool) -> None:
        weight = model.embedding.weight
        self.model, self.drafts, self.device = model, drafts, weight.device
        self.cache = LatentCache(model.config, rows, capacity, weight.dtype, weight.device)
        self.rows = Rows(rows, weight.device)
        self.row_steps = 0  # rows decoded, summed over the steps
        self.verdicts = torch.zeros(2, dtype=torch.int64, device=weight.device)  # drafts checked, drafts kept
        self._reach = 0  # the newest tokens of all active rows lie before this place

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
        self._reach = max(self._reach, hidden.shape[1] + 1)
        end = self.rows.fields(first).position.clone()
        state = hidden[owner, end].unsqueeze(1)
        drawn = self._draw(state, end.unsqueeze(1) + 1, first)
        self.rows.record(_column(drawn, 0), first)
        if self.drafts:
            self._guess(state, drawn.token, end.unsqueeze(1), torch.zeros_like(end), first)

    def _read(self, prompts: Sequence[Sequence[int]], first: int) -> Float[Tensor, "P T D"]:
        """Fill the cache rows from `first` on with prompts; those shorter than the longest are padded behind."""
        width = max(map(len, prompts))
        tokens = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=self.device)
        places = torch.arange(width, device=self.device).expand_as(tokens)
        slots = CacheSlots.at(self.cache, first, places, width, fresh=True)
        hidden = self.model(tokens, slots=slots)
        if self.drafts and width > 1:
            slots = CacheSlots.at(self.cache, first, places[:, :-1], width - 1, fresh=True)
            self.model.predict_further(0, hidden[:, :-1], tokens[:, 1:], slots=slots)
        return hidden

    def decode(self) -> None:
        """Draw the next token of every active row, or the next two where the first is the draft."""
        self.row_steps += self.rows.count
        if self.drafts:
            self._decode_with_drafts()
            return
        row = self.rows.fields()
        place = row.position.unsqueeze(1)
        slots = CacheSlots.at(self.cache, 0, place, self._reach, fresh=False)
        hidden = self.model(row.token.unsqueeze(1), slots=slots)
        self.rows.record(_column(self._draw(hidden, place + 1), 0))
        self._reach += 1

    def _decode_with_drafts(self) -> None:
        row = self.rows.fields()
        places = torch.stack((row.position, row.position + 1), dim=1)
        slots = CacheSlots.at(self.cache, 0, places, self._reach + 1, fresh=False)
        hidden = self.model(torch.stack((row.token, row.draft), dim=1), slots=slots)
        drawn = self._draw(hidden, places + 1)
        first, second = _column(drawn, 0), _column(drawn, 1)
        self.rows.record(first)
        checked = self.rows.finished().logical_not_()
        kept = (first.token == row.draft).logical_and_(checked)
        newest = Choice(*(torch.where(kept, two, one) for one, two in zip(first, second, strict=True)))
        self.rows.record(newest, advance=kept.long())
        self.verdicts += torch.stack((checked.sum(), kept.sum()))
        self._reach = self._newest_place() + 1
        self._guess(hidden, drawn.token, places, kept.long())

    def _guess(
        self,
        hidden: Float[Tensor, "N T D"],
        following: Int[Tensor, "N T"],
        places: Int[Tensor, "N T"],
        newest: Int[Tensor, " N"],
        first: int = 0,
    ) -> None:
        """Draft from the states at `places` and the tokens that follow them; a row now ends with column `newest`."""
        slots = CacheSlots.at(self.cache, first, places, self._reach, fresh=False)
        states = self.model.predict_further(0, hidden, following, slots=slots)
        state = states[torch.arange(len(states), device=self.device), newest].unsqueeze(1)
        row = self.rows.fields(first)
        row.draft.copy_(self._draw(state, row.position.unsqueeze(1) + 1, first).token[:, 0])

    def _draw(self, hidden: Float[Tensor, "N T D"], places: Int[Tensor, "N T"], first: int = 0) -> Choice:
        """What rows first .. count - 1 put at `places`: tokens and log-probabilities, both (N, T)."""
        logits, law = self.model.logits(hidden.flatten(0, 1)), self.rows.law
        if law is not None and law.temperature == 0:
            return Choice(*(each.view_as(places) for each in likeliest(logits)))
        row = self.rows.fields(first)
        uniforms = uniform(row.key.unsqueeze(1), places).flatten()
        if law is not None and not law.truncates:
            drawn = draw(logits, uniforms, law.temperature)
        else:
            temperature, top_p = self.rows.laws(first)
            laws = (each.unsqueeze(1).expand_as(places).flatten() for each in (temperature, row.top_k, top_p))
            drawn = draw_each(logits, uniforms, *laws)
        return Choice(*(each.view_as(places) for each in drawn))

    def drop(self, finished: Bool[Tensor, " N"]) -> None:
        """Take finished rows out; the last active ones move to their places."""
        source, target = self.rows.close_ranks(finished)
        if len(target):
            self.cache.copy_rows(source, target, self._reach)
        self._reach = self._newest_place() + 1 if self.rows.count else 0

    def clear(self) -> None:
        """Take all rows out."""
        self.rows.count = self._reach = 0

    def _newest_place(self) -> int:
        return int(self.rows.fields().position.max())


def _column(choice: Choice, column: int) -> Choice:
    return Choice(choice.token[:, column], choice.logprob[:, column])
