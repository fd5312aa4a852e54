"""The state of the rows that are being decoded, and what they have drawn so far."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from fathom.infer.sampler import Choice, Law, stream_key
from fathom.infer.scheduler import Admission
from fathom.infer.tenant import Tenant
from fathom.kernels.sampling import DrawState

NO_TOKEN = -1  # fills the columns of rows with fewer stop ids than others


class Fields(NamedTuple):
    """Whole numbers of some rows, each (N,)."""

    token: Tensor  # the newest token: not yet in the cache
    position: Tensor  # place of `token` in its row
    start: Tensor  # place of the first drawn token: the length of the prompt
    last: Tensor  # place of the last token that the request allows
    key: Tensor  # of the row's random numbers
    sample: Tensor
    top_k: Tensor
    watched: Tensor  # 1 where tokens are looked at as they are drawn


FIELDS = len(Fields._fields)


class SavedRow(NamedTuple):
    """A row that was taken out before its end."""

    tenant: Tenant
    whole: Tensor  # fields, then stop ids
    law: Tensor
    tokens: Tensor  # that it drew, and their log-probabilities
    logprobs: Tensor


class Rows:
    """Rows 0 .. count - 1 are active. All numbers of a row lie in two tables, so that rows move in a few copies.

    What only the host needs to know of a row is its tenant.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.count, self.capacity = 0, rows
        self.law: Law | None = None  # by which all active rows are drawn; None where they differ
        self.tenants: list[Tenant] = []
        self.edited: list[int] = []  # rows whose logits are changed before the draw
        self.traced = 0  # 1 + the most likeliest tokens that a row keeps of every place; 0 where none keeps traces
        self.routed = False  # whether a row keeps its experts
        self._whole = torch.zeros(FIELDS, rows, dtype=torch.int64, device=device)  # fields, then stop ids
        self._seen: tuple[tuple[int, int], Fields] | None = None  # the last view handed out, and of which rows
        self._laws = torch.zeros(3, rows, device=device)  # temperature, top_p, min_p
        self._tokens = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(rows, 0, device=device)

    def reserve(self, max_tokens: int, stop_ids: int) -> None:
        """Make room for so many tokens and stop ids a row."""
        if (more := max_tokens - self._tokens.shape[1]) > 0:
            self._tokens, self._logprobs = F.pad(self._tokens, (0, more)), F.pad(self._logprobs, (0, more))
        if (more := FIELDS + stop_ids - self._whole.shape[0]) > 0:
            self._whole = F.pad(self._whole, (0, 0, 0, more), value=NO_TOKEN)
            self._seen = None

    @property
    def watched_closely(self) -> bool:
        """Whether the host has to do with every step of a row: it changes logits, or keeps more than what is drawn."""
        return bool(self.edited or self.traced or self.routed)

    def fields(self, first: int = 0) -> Fields:
        """The state of rows first .. count - 1, to be read and written in place."""
        span = (first, self.count)
        if self._seen is None or self._seen[0] != span:  # ten views cost more than a product of a small model
            self._seen = span, Fields(*self._whole[:FIELDS, first : self.count].unbind())
        return self._seen[1]

    def laws(self, first: int = 0) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Temperature, top_p and min_p of rows first .. count - 1."""
        temperature, top_p, min_p = self._laws[:, first : self.count].unbind()
        return temperature, top_p, min_p

    @property
    def stop_ids(self) -> Int[Tensor, "N S"]:
        """Those of each active row, NO_TOKEN behind them."""
        return self._whole[FIELDS:, : self.count].T

    def draw_state(self, place: Int32[Tensor, " N"]) -> DrawState:
        """The state of all rows, used or not, as a GPU draws from it and writes to it."""
        row = Fields(*self._whole[:FIELDS].unbind())
        temperature, top_p, min_p = self._laws.unbind()
        return DrawState(
            row.token,
            row.position,
            row.start,
            row.last,
            row.key,
            temperature,
            row.top_k,
            top_p,
            min_p,
            self._whole[FIELDS:],
            place,
            self._tokens,
            self._logprobs,
        )

    def add(self, admissions: Sequence[Admission], owner: Int[Tensor, " N"]) -> None:
        """Append N rows that stand at the end of their prompts, with nothing drawn; admission owner[i] gets row i."""
        first, self.count = self.count, self.count + len(owner)
        laws = [Law(s.temperature, s.top_k, s.top_p, s.min_p) for s in (each.request.sampling for each in admissions)]
        self._laws[:, first : self.count] = torch.tensor(
            [(law.temperature, law.top_p, law.min_p) for law in laws], device=owner.device
        )[owner].T
        whole = torch.tensor([self._state(each) for each in admissions], device=owner.device)
        self._whole[:, first : self.count] = whole[owner].T
        row = self.fields(first)
        row.sample.copy_(torch.tensor([sample for each in admissions for sample in each.samples], device=owner.device))
        row.key.copy_(stream_key(row.key, row.sample))
        self.tenants += [
            Tenant(each.request_id, each.request, sample, each.streams)
            for each in admissions
            for sample in each.samples
        ]
        self._survey()

    def _survey(self) -> None:
        """Find out what the active rows have in common, and which of them ask for more than others."""
        laws = {tenant.law for tenant in self.tenants}
        self.law = laws.pop() if len(laws) == 1 else None
        self.edited = [row for row, tenant in enumerate(self.tenants) if tenant.edits]
        self.traced = max((tenant.request.top_logprobs + 1 for tenant in self.tenants if tenant.traced), default=0)
        self.routed = any(tenant.routing for tenant in self.tenants)

    def _state(self, admission: Admission) -> list[int]:
        """The column of a row at the end of its prompt: the seed where its key belongs, and sample 0."""
        request, start = admission.request, len(admission.request.prompt)
        fields = {
            "token": 0,
            "position": start - 1,
            "start": start,
            "last": start + request.sampling.max_tokens - 1,
            "key": _signed(request.seed),
            "top_k": request.sampling.top_k,
            "sample": 0,
            "watched": int(admission.streams or bool(request.stop)),
        }
        missing_stops = self._whole.shape[0] - FIELDS - len(request.stop_ids)
        return [*(fields[name] for name in Fields._fields), *request.stop_ids, *[NO_TOKEN] * missing_stops]

    def save(self, row: int) -> SavedRow:
        """Everything about a row that is not in the cache."""
        drawn = int(self.counts(torch.tensor([row], device=self._whole.device))[0])
        parts = (self._whole[:, row], self._laws[:, row], self._tokens[row, :drawn], self._logprobs[row, :drawn])
        return SavedRow(self.tenants[row], *(part.clone() for part in parts))

    def restore(self, saved: Sequence[SavedRow]) -> None:
        """Append rows as they were when they were saved; tables may have grown since."""
        for row, each in enumerate(saved, self.count):
            self._whole[:, row] = F.pad(each.whole, (0, self._whole.shape[0] - len(each.whole)), value=NO_TOKEN)
            self._laws[:, row] = each.law
            self._tokens[row, : len(each.tokens)] = each.tokens
            self._logprobs[row, : len(each.logprobs)] = each.logprobs
            self.tenants.append(each.tenant)
        self.count += len(saved)
        self._survey()

    def end(self, row: int) -> None:
        """Let a row finish with what it draws next."""
        self.fields().last[row] = NO_TOKEN

    def record(self, choice: Choice, first: int = 0, advance: int | Int[Tensor, " N"] = 1) -> None:
        """Move rows first .. count - 1 on by `advance` places and note what they drew there."""
        row = self.fields(first)
        row.position.add_(advance)
        row.token.copy_(choice.token)
        column = (row.position - row.start).unsqueeze(1)
        self._tokens[first : self.count].scatter_(1, column, choice.token.unsqueeze(1))
        self._logprobs[first : self.count].scatter_(1, column, choice.logprob.unsqueeze(1))

    def record_run(self, choice: Choice, kept: Int[Tensor, " N"]) -> None:
        """Note the first `kept` + 1 of the tokens (N, T) that active rows drew for the places behind their newest."""
        row = self.fields()
        step = torch.arange(choice.token.shape[1], device=kept.device).minimum(kept.unsqueeze(1))
        columns = (row.position - row.start + 1).unsqueeze(1) + step  # behind a row's last new token, that once more
        tokens = choice.token.gather(1, step)
        self._tokens[: self.count].scatter_(1, columns, tokens)
        self._logprobs[: self.count].scatter_(1, columns, choice.logprob.gather(1, step))
        row.position.add_(kept).add_(1)
        row.token.copy_(tokens[:, -1])

    def drawn(self, places: Int[Tensor, "N T"]) -> Int[Tensor, "N T"]:
        """The tokens that active rows drew at `places`; anything at places of a prompt or behind the newest token."""
        columns = (places - self.fields().start.unsqueeze(1)).clamp_(0, self._tokens.shape[1] - 1)
        return self._tokens[: self.count].gather(1, columns)

    def ends(self, tokens: Int[Tensor, "N T"], places: Int[Tensor, "N T"]) -> Bool[Tensor, "N T"]:
        """Which active rows would finish with `tokens` at `places`: a stop id, or the last token they may draw."""
        stops = (self.stop_ids.unsqueeze(1) == tokens.unsqueeze(2)).any(-1)
        return stops.logical_or_(places >= self.fields().last.unsqueeze(1))

    def finished(self) -> Bool[Tensor, " N"]:
        """Which active rows drew a stop id or the last token they may."""
        row = self.fields()
        return (self._whole[FIELDS:, : self.count] == row.token).any(0).logical_or_(row.position >= row.last)

    def counts(self, index: Int[Tensor, " K"]) -> list[int]:
        """The number of drawn tokens of rows `index`."""
        row = self.fields()
        return (row.position - row.start + 1)[index].tolist()

    def tokens_from(self, row: int, first: int) -> list[int]:
        """The tokens that a row drew, without the first so many."""
        fields = self.fields()
        return self._tokens[row, first : int(fields.position[row] - fields.start[row]) + 1].tolist()

    def newest(self, index: Int[Tensor, " K"], width: int) -> tuple[list[list[int]], list[list[float]]]:
        """The last `width` tokens and log-probabilities of rows `index`; rows that drew fewer repeat their first."""
        columns = self.columns(index, width)
        index = index.unsqueeze(1)
        return self._tokens[index, columns].tolist(), self._logprobs[index, columns].tolist()

    def columns(self, index: Int[Tensor, " K"], width: int) -> Int[Tensor, "K W"]:
        """Where the last `width` tokens of rows `index` stand among the tokens they drew."""
        row = self.fields()
        ends = (row.position - row.start)[index].unsqueeze(1)
        return (ends + torch.arange(1 - width, 1, device=index.device)).clamp_(min=0)

    def close_ranks(self, finished: Bool[Tensor, " N"]) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
        """Drop finished rows and move the last active ones to their places; returns where those were and are."""
        left = self.count - int(finished.sum())
        target = finished[:left].nonzero().flatten()
        source = finished[left:].logical_not().nonzero().flatten() + left
        if len(target):
            for table in (self._whole, self._laws):
                table[:, target] = table[:, source]
            for table in (self._tokens, self._logprobs):
                table[target] = table[source]
            for new, old in zip(target.tolist(), source.tolist(), strict=True):
                self.tenants[new] = self.tenants[old]
        del self.tenants[left:]
        self.count = left
        if self.law is None or self.watched_closely:  # else those who are left have as much in common
            self._survey()
        return source, target

    def clear(self) -> None:
        """Drop all rows."""
        self.count = 0
        self.tenants.clear()
        self._survey()


def _signed(seed: int) -> int:
    """The low 64 bits as int64 holds them."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
