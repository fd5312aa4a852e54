"""Decoding with drafts: MTP modules guess some tokens ahead, and one pass of the model judges them all (V3 5.4.3)."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.infer.drafter import Drafter, Slots
from fathom.infer.edits import Edits
from fathom.infer.pace import Pace
from fathom.infer.rows import Rows
from fathom.infer.sampler import Choice, invert
from fathom.infer.traces import Traces
from fathom.infer.verify import ACCEPT, DRAFT, RESIDUAL, Rule, chances, leading, likeliest_only, numbers, settle
from fathom.kernels.peak import peak
from fathom.model import Reader, Streamed
from fathom.model import Slots as CacheSlots
from fathom.plan.serving import relative_reads

MOST_CHOSEN = 4  # drafts of a step where their count is chosen: further ones are seldom kept

Drafts = int | Literal["auto"]


def most_drafts(drafts: Drafts) -> int:
    """Of one step."""
    return MOST_CHOSEN if drafts == "auto" else int(drafts)


@dataclass(frozen=True)
class Plain:
    """What the runner does for its rows in every step, with drafts or without."""

    slots: Slots
    states: Callable[[Tensor, CacheSlots], Tensor]  # of tokens (N, T) at these slots
    logits: Callable[[Tensor, Tensor], Tensor]  # of states (N, T, D) and the places they speak of
    draw: Callable[[Tensor, Tensor, int, Tensor | None], Choice]  # by logits, places, first row and edited logits
    record: Callable[[Choice, int, Tensor], None]  # tokens of rows from the first on, which advance so far


class Speculation:
    """Drafts for the active rows, and the rule that judges them.

    What a step judges is drafted at its beginning, so nothing but states of the model stays between steps, and each may
    draft as many as it likes.
    """

    def __init__(
        self, reader: Reader, rows: Rows, edits: Edits, traces: Traces, drafts: Drafts, rule: Rule, plain: Plain
    ) -> None:
        most = most_drafts(drafts)
        model = reader.model if isinstance(reader, Streamed) else reader
        self._rows, self._edits, self._traces, self._plain = rows, edits, traces, plain
        self._rule, self._count = rule, 0 if drafts == "auto" else most
        self._device = model.embedding.weight.device
        self._pace = Pace(most, cache(partial(relative_reads, model.config))) if drafts == "auto" else None
        self.modules = min(most, len(model.mtp))  # that draft, one token each
        self._drafter = Drafter(reader, rows, self.modules, most + 1, plain.slots, patient=drafts == "auto")
        self.verdicts = torch.zeros(2, most, dtype=torch.int64, device=self._device)  # checked and kept, by position
        self._started = 0.0

    # ---- what the runner tells --------------------------------------------------------------------------------------

    def read(
        self, hidden: Float[Tensor, "P T D"], tokens: Int[Tensor, "P T"], last: Int[Tensor, " P"], first: int
    ) -> None:
        """Rows from `first` on were run from their beginning to place `last`."""
        if self._count:
            self._drafter.read_prompts(hidden, tokens, last, first)

    def admit(
        self, hidden: Float[Tensor, "P T D"], last: Int[Tensor, " N"], owner: Int[Tensor, " N"], first: int
    ) -> None:
        """Rows from `first` on go on behind place last[i] of prompt owner[i] of those that `read` told of."""
        self._drafter.admit(hidden, last, owner, first, read=self._count > 0)

    def go_on(self, ends: Float[Tensor, "N M D"], last: Int[Tensor, " N"], first: int) -> None:
        """Rows from `first` on go on behind place last[i], read by the modules; `ends` as in `Drafter.go_on`."""
        self._drafter.go_on(ends, last, first)

    def read_up_to(self, row: int) -> int:
        """Places of a row that the modules have read, each with the token behind it."""
        return self._drafter.read_up_to(row)

    def keep(self, hidden: Float[Tensor, "N 1 D"]) -> None:
        """A step without drafts is over that gave every row one token; `hidden` are the states it was drawn from."""
        self._drafter.log(hidden)
        if self._pace:
            self._pace.note(0, self._clock() - self._started)

    def move(self, source: Int[Tensor, " M"], target: Int[Tensor, " M"]) -> None:
        """Rows `source` have moved to `target`."""
        self._drafter.move(source, target)

    def clear(self) -> None:
        """No row is active any more."""
        self._drafter.clear()

    # ---- a step -----------------------------------------------------------------------------------------------------

    def decode(self, reach: int, limit: int) -> bool:
        """Draw the next tokens of all rows with drafts; False, and nothing done, where this step is to make none.

        The newest tokens lie below place `reach`, and no row has one from `limit` on.
        """
        pace = self._pace
        if pace:
            self._count = pace.choose(self._rows.count)
            self._started = self._clock()
        if not self._count:
            return False
        late = self._drafter.late
        if late:
            self._drafter.catch_up(reach)
        drafting = self._clock() if late and pace else self._started
        checked, kept = self._step(reach, limit)
        verdicts = torch.stack((checked.sum(0), kept.sum(0)))
        self.verdicts[:, : self._count] += verdicts
        if pace:
            pace.count(*verdicts.tolist())
            pace.note(self._count, self._clock() - drafting, extra=drafting - self._started)
        return True

    def _step(self, reach: int, limit: int) -> tuple[Bool[Tensor, "N K"], Bool[Tensor, "N K"]]:
        """One pass over newest tokens and drafts: which of the drafts were checked, and which kept."""
        row, count = self._rows.fields(), self._count
        nexts = row.position.unsqueeze(1) + torch.arange(1, count + 2, device=self._device)  # places drawn for
        places = torch.minimum(nexts - 1, row.last.unsqueeze(1))  # nobody reads what is behind a row's last token
        token = row.token.clone()
        drafts, proposals = self._draft(reach, limit)
        length = min(reach + count, limit)
        slots = self._plain.slots(0, places, length, False)
        hidden = self._plain.states(torch.cat((token.unsqueeze(1), drafts), dim=1), slots)
        self._drafter.keep(hidden, places, length)
        logits = self._plain.logits(hidden, nexts)
        judge = self._judge_in_turn if self._rows.edited else self._judge_at_once
        column = row.position - row.start + 1
        checked, kept = judge(logits, nexts, drafts, proposals)
        if self._rows.traced:
            for draft in range(count):
                self._traces.judge(column + draft, checked[:, draft], kept[:, draft])
        return checked, kept

    def _judge_at_once(
        self,
        logits: Float[Tensor, "N T V"],
        nexts: Int[Tensor, "N T"],
        drafts: Int[Tensor, "N K"],
        proposals: list[Float[Tensor, "N V"]],
    ) -> tuple[Bool[Tensor, "N K"], Bool[Tensor, "N K"]]:
        drawn = self._draw(logits, nexts, drafts, proposals)
        going = self._rows.ends(drawn.token[:, :-1], nexts[:, :-1]).logical_not_()
        kept = (drawn.token[:, :-1] == drafts) & going
        count = leading(kept)
        order = torch.arange(drafts.shape[1], device=self._device)
        self._rows.record_run(drawn, count)
        return going & (order <= count.unsqueeze(1)), kept & (order < count.unsqueeze(1))

    def _judge_in_turn(
        self,
        logits: Float[Tensor, "N T V"],
        nexts: Int[Tensor, "N T"],
        drafts: Int[Tensor, "N K"],
        proposals: list[Float[Tensor, "N V"]],
    ) -> tuple[Bool[Tensor, "N K"], Bool[Tensor, "N K"]]:
        """What follows a draft is drawn once the draft counts among the tokens drawn, by which logits are changed."""
        going = torch.ones(len(nexts), dtype=torch.bool, device=self._device)
        verdicts: list[tuple[Tensor, Tensor]] = []
        newest: Choice | None = None
        for column in range(nexts.shape[1]):
            part = slice(column, column + 1)
            edited = self._edits.apply(logits[:, column], 0, going)
            drawn = self._draw(logits[:, part], nexts[:, part], drafts[:, part], proposals[part], edited)
            drawn = Choice(drawn.token[:, 0], drawn.logprob[:, 0])
            newest = Choice(*(torch.where(going, new, old) for new, old in zip(drawn, newest or drawn, strict=True)))
            self._plain.record(newest, 0, going.long())
            if column < drafts.shape[1]:
                checked = going & self._rows.finished().logical_not_()
                going = checked & (drawn.token == drafts[:, column])
                verdicts.append((checked, going))
        checked, kept = zip(*verdicts, strict=True)
        return torch.stack(checked, dim=1), torch.stack(kept, dim=1)

    # ---- the two laws -----------------------------------------------------------------------------------------------

    def _draft(self, reach: int, limit: int) -> tuple[Int[Tensor, "N K"], list[Float[Tensor, "N V"]]]:
        """Drafts, and under a rule that asks for them the laws they were drawn by."""
        rows, edits = self._rows, self._edits
        position, proposals = rows.fields().position.clone(), list[Tensor]()
        nobody = torch.zeros(rows.count, dtype=torch.bool, device=self._device)
        with edits.supposing() if rows.edited else nullcontext() as suppose:

            def choose(logits: Float[Tensor, "N V"], draft: int) -> Int[Tensor, " N"]:
                # a callable is asked for texts alone: behind a draft, which may be none, its mask is not known
                edited = edits.apply(logits, 0, None if draft == 1 else nobody) if rows.edited else None
                token = self._propose(logits, (position + draft).unsqueeze(1), edited, proposals)
                if suppose and draft < self._count:
                    suppose(token)
                return token

            drafts = self._drafter.draft(self._count, reach, limit, choose)
        return torch.stack(drafts, dim=1), proposals

    def _propose(
        self,
        logits: Float[Tensor, "N V"],
        place: Int[Tensor, "N 1"],
        edited: Float[Tensor, "N V"] | None,
        proposals: list[Float[Tensor, "N V"]],
    ) -> Int[Tensor, " N"]:
        rows = self._rows
        changed = logits if edited is None else edited
        if self._rule == "coupled":
            if rows.law and rows.law.temperature == 0:
                return peak(changed)[1]
            return self._plain.draw(logits.unsqueeze(1), place, 0, edited).token[:, 0]
        if self._rule == "greedy":
            proposals.append(likeliest_only(changed))
            return peak(changed)[1]
        temperature, top_p, min_p = rows.laws()
        proposals.append(chances(changed, temperature, rows.fields().top_k, top_p, min_p))
        return invert(proposals[-1], numbers(DRAFT, rows.fields().key, place).squeeze(1))

    def _draw(
        self,
        logits: Float[Tensor, "N T V"],
        places: Int[Tensor, "N T"],
        drafts: Int[Tensor, "N K"],
        proposals: list[Float[Tensor, "N V"]],
        edited: Float[Tensor, "N V"] | None = None,
    ) -> Choice:
        """What rows put at `places`, where the first ones have drafts, and their laws unless noise is coupled."""
        if self._rule == "coupled":
            return self._plain.draw(logits, places, 0, edited)
        row, scores = self._rows.fields(), logits.flatten(0, 1)
        temperature, top_p, min_p = self._rows.laws()
        laws = [x.unsqueeze(1).expand_as(places).flatten() for x in (temperature, row.top_k, top_p, min_p)]
        missing = places.shape[1] - drafts.shape[1]  # no draft stands in the last place
        none = [torch.zeros_like(logits[:, 0])] * missing
        token = settle(
            chances(scores if edited is None else edited, *laws),
            torch.stack([*proposals, *none], dim=1).flatten(0, 1),
            F.pad(drafts, (0, missing)).flatten(),
            numbers(ACCEPT, row.key, places).flatten(),
            numbers(RESIDUAL, row.key, places).flatten(),
        )
        scaled = scores / laws[0].masked_fill(laws[0] == 0, 1.0).unsqueeze(1)
        logprob = scaled.gather(1, token.unsqueeze(1)).squeeze(1) - scaled.logsumexp(-1)
        return Choice(token.view_as(places), logprob.view_as(places))

    def _clock(self) -> float:
        """Seconds: on a CPU those that this thread had, for others that share the machine slow all steps down alike."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return time.perf_counter()
        return time.thread_time()
