"""Drafts by MTP modules: what these have read of every row, and what they say comes next (V3 2.2, 5.4.3).

At place i module d reads the state of module d - 1 there (module 0: the model's) and the token at i + d + 1, and says
what comes at i + d + 2. With the newest token at place P, the first draft is thus module 0's at place P - 1, and module
d goes on there with draft d as its token. Once there is no further module, the last one goes on at the places behind,
with its own state in place of the one that only a pass of the model could give.

What a module reads with a draft in it is provisional: its place hides it until that is read again with the true token.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fathom.infer.rows import Rows
from fathom.infer.scheduler import PREFILL_TOKENS
from fathom.model import Reader, Streamed
from fathom.model import Slots as CacheSlots

LOGGED = 64  # steps without drafts whose states are put into the table together

Slots = Callable[[int, Tensor, int, bool], CacheSlots]  # of the first row, places (N, T), their bound, and `fresh`
Choose = Callable[[Tensor, int], Tensor]  # logits (N, V) of draft j, counted from 1, to tokens (N,)


class Drafter:
    """The first `modules` MTP modules over the active rows.

    States of the model wait in a table until the modules read them: of every row those of the last `window` places,
    as many as a step has tokens. Where steps without drafts come between (`patient`) the table holds whole rows, so
    that the modules can read later what they missed, and draft as if they had read on all the time.
    """

    def __init__(self, reader: Reader, rows: Rows, modules: int, window: int, slots: Slots, patient: bool) -> None:
        model = reader.model if isinstance(reader, Streamed) else reader
        weight, width = model.embedding.weight, model.config.hidden_size
        self._reader, self._rows, self._modules, self._slots = reader, rows, modules, slots
        self._window, self._patient = window, patient
        self._states = weight.new_zeros(rows.capacity, window, width)
        # of module d, at the last place but d that is read: module d + 1 reads that one again, with the token it lacked
        self._carried = weight.new_zeros(max(0, modules - 1), rows.capacity, width)
        self._begin = torch.zeros(rows.capacity, dtype=torch.int64, device=weight.device)  # places before it are read
        self._row = torch.arange(rows.capacity, device=weight.device)
        self._log = list[Tensor]()  # states of the steps without drafts that are not in the table yet
        self._logged = self._begin  # places of the first of them
        self._behind = 0  # places to be read, of the row that has the most
        self._unread = False  # whether some of them are of a prompt

    @property
    def late(self) -> bool:
        """Whether there is more to be read than the steps with drafts leave: `catch_up` comes before `draft` then."""
        return self._unread or self._behind > self._window

    def log(self, hidden: Float[Tensor, "N 1 D"]) -> None:
        """Let the states of a step without drafts, which has moved every row on, wait until they are read.

        Nothing is copied as long as the rows stay the same: such steps are to cost no more than without drafts.
        """
        if self._log and (len(self._log) == LOGGED or len(self._log[0]) != len(hidden)):
            self._file()
        if not self._log:
            self._logged = self._rows.fields().position - 1
        self._log.append(hidden)
        self._behind += 1

    def keep(self, hidden: Float[Tensor, "N T D"], places: Int[Tensor, "N T"], length: int, first: int = 0) -> None:
        """Let states of the model at `places`, all below `length`, wait until they are read."""
        if self._patient and length > self._states.shape[1]:
            more = max(length, 2 * self._states.shape[1]) - self._states.shape[1]
            self._states = F.pad(self._states, (0, 0, 0, more))
        entries = self._entries(places, first)
        self._states.view(-1, hidden.shape[-1]).index_copy_(0, entries.flatten(), hidden.flatten(0, 1))
        self._behind += places.shape[1]

    def read_prompts(
        self, hidden: Float[Tensor, "P T D"], tokens: Int[Tensor, "P T"], last: Int[Tensor, " P"], first: int
    ) -> None:
        """Read rows from `first` on, empty before, of which `last` is the place of the last token."""
        if (width := tokens.shape[1] - 1) > 0:
            following = F.pad(tokens[:, 1:], (0, self._modules))
            self._read(hidden[:, :-1], following, torch.zeros_like(last), last, first, width, fresh=True)

    def admit(
        self, hidden: Float[Tensor, "P T D"], last: Int[Tensor, " N"], owner: Int[Tensor, " N"], first: int, read: bool
    ) -> None:
        """Take up rows first .. first + N - 1 with prompt owner[i], up to place last[i], which is `read` or not."""
        self._file()
        rows, behind = slice(first, first + len(owner)), self._behind
        if read:
            self._carried[:, rows] = self._carried[:, first + owner]
            self.keep(hidden[owner, last].unsqueeze(1), last.unsqueeze(1), hidden.shape[1], first)
            self._begin[rows] = last
        else:
            places = torch.arange(hidden.shape[1], device=last.device).expand(len(owner), -1)
            self.keep(hidden[owner], places, hidden.shape[1], first)
            self._begin[rows] = 0
            self._unread = True
        self._behind = max(behind, self._behind - behind)

    def go_on(self, ends: Float[Tensor, "N M D"], last: Int[Tensor, " N"], first: int) -> None:
        """Take up rows from `first` on, which the modules have read up to place last[i].

        There the model was in state ends[i, 0], and at place last[i] - 1 - d module d, but for the last, in
        ends[i, 1 + d].
        """
        self._file()
        behind = self._behind
        self._carried[:, first : first + len(last)] = ends[:, 1:].transpose(0, 1)
        self.keep(ends[:, :1], last.unsqueeze(1), int(last.max()) + 1, first)
        self._begin[first : first + len(last)] = last
        self._behind = max(behind, self._behind - behind)

    def read_up_to(self, row: int) -> int:
        """Places of a row that all modules have read, with the true tokens behind them."""
        return int(self._begin[row]) + 1 - self._modules

    def catch_up(self, length: int) -> None:
        """Read all that waits but the newest place, some rows at a time; all places lie below `length`."""
        self._file()
        rows = self._rows
        position, begin = rows.fields().position, self._begin[: rows.count]
        width = int((position - begin).max()) - 1
        if width > 0:
            share = max(1, PREFILL_TOKENS // width)
            for first, end in pairwise([*range(0, rows.count, share), rows.count]):
                places = self._places(first, end, width)
                texts = [
                    [*rows.tenants[row].request.prompt, *rows.tokens_from(row, 0)][start + 1 : start + 1 + width]
                    for row, start in enumerate(places[:, 0].tolist(), first)
                ]
                texts = [[*text, *[0] * (width + self._modules - len(text))] for text in texts]
                following = torch.tensor(texts, device=begin.device)
                last = position[first:end] - 1
                self._read(self._waiting(places, first), following, places[:, 0], last, first, length)
            begin.copy_(position - 1)
        self._behind, self._unread = 1, False

    def draft(self, count: int, length: int, limit: int, choose: Choose) -> list[Int[Tensor, " N"]]:
        """Read what waits and draft `count` tokens behind the newest ones, which lie below `length`; no place of a row
        reaches `limit`."""
        self._file()
        rows = self._rows
        row, begin = rows.fields(), self._begin[: rows.count]
        newest = row.position.clone()  # `choose` may move rows on meanwhile
        place, edge = newest - 1, torch.maximum(row.last, newest)
        places = self._places(0, rows.count, self._behind)
        waiting = self._waiting(places, 0)
        following = F.pad(rows.drawn(places + 1), (0, self._modules))
        drafts: list[Tensor] = []
        state = waiting[:, 0]
        for state in self._passes(waiting, following, begin, newest, 0, length):
            if len(drafts) < count:  # further modules only read
                drafts.append(choose(self._reader.logits(state), len(drafts) + 1))
                following.scatter_(1, (place - begin + len(drafts)).unsqueeze(1), drafts[-1].unsqueeze(1))
        while len(drafts) < count:
            place = torch.minimum(place + 1, edge)  # a draft behind the last token of a row is for nobody
            slots = self._slots(0, place.unsqueeze(1), min(length + count, limit), False)
            state, token = state.unsqueeze(1), drafts[-1].unsqueeze(1)
            state = self._reader.predict_further(self._modules - 1, state, token, slots=slots).squeeze(1)
            drafts.append(choose(self._reader.logits(state), len(drafts) + 1))
        begin.copy_(newest)
        self._behind = 0
        return drafts

    def move(self, source: Int[Tensor, " M"], target: Int[Tensor, " M"]) -> None:
        """Rows `source` have moved to `target`."""
        self._file()
        for table in (self._states, self._begin):
            table[target] = table[source]
        self._carried[:, target] = self._carried[:, source]

    def clear(self) -> None:
        """No row is active any more."""
        self._log.clear()
        self._behind, self._unread = 0, False

    def _file(self) -> None:
        """Put what is logged into the table."""
        if not self._log:
            return
        hidden, self._log = torch.cat(self._log, dim=1), []
        places = self._logged.unsqueeze(1) + torch.arange(hidden.shape[1], device=hidden.device)
        behind = self._behind
        self.keep(hidden, places, int(places.max()) + 1)
        self._behind = behind

    def _places(self, first: int, end: int, width: int) -> Int[Tensor, "N W"]:
        """The first `width` places that rows first .. end - 1 have not read."""
        return self._begin[first:end].unsqueeze(1) + torch.arange(width, device=self._begin.device)

    def _entries(self, places: Int[Tensor, "N T"], first: int) -> Int[Tensor, "N T"]:
        """Where the states at `places` of rows from `first` on lie in the table."""
        span = self._states.shape[1]
        return self._row[first : first + len(places)].unsqueeze(1) * span + places % span

    def _waiting(self, places: Int[Tensor, "N T"], first: int) -> Float[Tensor, "N T D"]:
        return self._states.view(-1, self._states.shape[-1])[self._entries(places, first)]

    def _read(
        self,
        states: Float[Tensor, "N W D"],
        following: Int[Tensor, "N F"],
        begin: Int[Tensor, " N"],
        newest: Int[Tensor, " N"],
        first: int,
        length: int,
        fresh: bool = False,
    ) -> None:
        for _ in self._passes(states, following, begin, newest, first, length, fresh):
            pass

    def _passes(
        self,
        states: Float[Tensor, "N W D"],
        following: Int[Tensor, "N F"],
        begin: Int[Tensor, " N"],
        newest: Int[Tensor, " N"],
        first: int,
        length: int,
        fresh: bool = False,
    ) -> Iterator[Float[Tensor, "N D"]]:
        """Let one module after the other read rows from `first` on, and yield its states at the place before `newest`.

        `states` are the model's from place `begin` on, `following` the tokens behind these places, up to that at
        `newest`; what stands behind it may be filled in between two passes. Module d begins d places before.
        """
        index, width, column = torch.arange(len(begin), device=begin.device), states.shape[1], newest - begin - 1
        for module in range(self._modules):
            lead = 0 if fresh else module
            if module:
                carried = self._carried[module - 1, first : first + len(begin)]
                if lead:
                    states = torch.cat((carried.unsqueeze(1), states), dim=1)
                carried.copy_(states[index, (column + 1 - module + lead).clamp_(min=0)])
            places = begin.unsqueeze(1) + torch.arange(-lead, width, device=begin.device)
            if not fresh:  # columns of rows with less to read write where the newest token will write over them
                edge = newest.unsqueeze(1)
                places = torch.where((places >= 0) & (places < edge), places, edge)
            slots = self._slots(first, places, length, fresh)
            tokens = following[:, module - lead : module + width]
            states = self._reader.predict_further(module, states, tokens, slots=slots)
            yield states[index, column + lead]
