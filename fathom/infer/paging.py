"""Letting requests in by free pages, reading their prompts between decoding steps, and taking pages back."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fathom.infer.check import check_pages
from fathom.infer.request import Request
from fathom.infer.runner import Parked, Runner
from fathom.infer.scheduler import SHORT_PASS, Admission, Queue, group_alike, share_budget
from fathom.infer.tables import Holding, Tables
from fathom.model import PagedSlots

LEAST_CHUNK = 16  # tokens of prompts that a step reads however many rows decode


@dataclass(eq=False)
class Reading:
    """A text on its way into pages."""

    enters: Admission | Parked  # who goes on with it
    text: list[int]  # of a parked sample with its newest token, which is not read
    size: int  # tokens to be read
    holding: Holding
    cached: int  # of these that were found
    done: int  # or read
    waits: bool = False  # for pages that an older text is about to fill with what this one begins with, too

    @property
    def age(self) -> tuple[int, int]:
        """The less, the older."""
        return _age(self.enters)


class Counters(NamedTuple):
    """What a server shows of its pages."""

    pages_used: int = 0  # that requests in flight hold
    pages_free: int = 0  # to be had: those among them that are kept only to be found again, too
    prefix_queries: int = 0  # tokens of all prompts
    prefix_hits: int = 0  # of these, found in the cache
    preemptions: int = 0  # samples that gave their pages to older ones, to be read again


class Paging:
    """Between the queue and the rows of a runner with tables.

    A step reads `budget` tokens at most, those that its rows decode among them: a long prompt comes in by chunks, and
    no row waits for more than one. What prompts that come together have in common is read once, for the oldest of them.
    Everyone older goes first: when pages run out, the youngest give theirs back and are read again later, with the
    tokens they drew. Draws belong to places, so their texts stay the same.
    """

    def __init__(self, runner: Runner, tables: Tables, budget: int) -> None:
        self._runner, self._tables, self._budget = runner, tables, budget
        self._readings: list[Reading] = []  # the oldest first
        self._parked: list[Parked] = []
        self._stuck: object = None  # who found too few pages, and how many there were
        self._queries, self._hits, self._preemptions = 0, 0, 0

    @property
    def counters(self) -> Counters:
        pool = self._tables.pool
        return Counters(pool.used, pool.available, self._queries, self._hits, self._preemptions)

    def check(self, request: Request) -> None:
        """Raise ValueError for a request of which one completion, alone, has too few pages."""
        tables = self._tables  # the last token is drawn, but not cached
        check_pages(request, tables.pages_of(request.places - 1), tables.pool.pages, tables.page_size)

    def together(self, request: Request) -> int:
        """Samples of a request that fit the pages as they start."""
        tables, size = self._tables, len(request.prompt)
        first, each = tables.pages_of(size), tables.spare(size, 2)
        return 1 + (tables.pool.pages - first) // max(each, 1)

    def admit(self, queue: Queue) -> None:
        """Begin to read who waits, while there are rows and pages for them."""
        rows = self._runner.rows
        while (entrant := self._next(queue)) is not None:
            taken = rows.count + sum(_samples(each.enters) for each in self._readings)
            stuck = (_age(entrant), self._tables.pool.available, taken)
            if taken + _samples(entrant) > rows.capacity or stuck == self._stuck:
                return
            if (reading := self._begin(entrant, headroom=taken)) is None:
                self._stuck = stuck
                return
            if isinstance(entrant, Admission):
                queue.pop()
            else:
                self._parked.remove(entrant)
            self._readings.append(reading)
            self._readings.sort(key=lambda each: each.age)

    def read(self) -> None:
        """Read a step's share of the texts; those that are read enter rows."""
        runner = self._runner
        budget = max(LEAST_CHUNK, self._budget - runner.rows.count * (1 + self._tables.ahead))
        ready: list[tuple[Reading, torch.Tensor]] = []
        while self._readings and budget > 0:  # once more for those that waited for others
            going = self._going()
            shares = share_budget([each.size - each.done for each in going], budget)
            for group in group_alike(shares):
                ready += self._pass([going[number] for number in group], shares[group[0]])
            self._readings = [each for each in self._readings if each.done < each.size]
            budget -= sum(shares)
        if not ready:
            return
        self._stuck = None  # whoever found too few pages may share those that were read
        self._enter([(each, state) for each, state in ready if isinstance(each.enters, Admission)])
        self._resume([(each, state) for each, state in ready if isinstance(each.enters, Parked)])

    def make_room(self, queue: Queue, steps: int) -> int:
        """Give every row the pages that its next steps write to, `steps` of them or one where there are too few.

        Returns how many steps there is room for. Where there is none even for one, the youngest make way.
        """
        rows, tables = self._runner.rows, self._tables
        while rows.count:
            row = rows.fields()
            places, last = torch.stack((row.position + 1, row.last)).tolist()
            left = max(end + 1 - place for place, end in zip(places, last, strict=True))
            steps = min(steps, max(1, left))
            ends = [max(place, min(place + steps - 1, end)) for place, end in zip(places, last, strict=True)]
            for count, wanted in ((steps, ends), (1, places)):
                if tables.missing(wanted) <= tables.pool.available:
                    tables.grow(wanted)
                    return count
            self._preempt_youngest(queue)
        return 0

    def park_all(self) -> None:
        """Let all rows be read again."""
        rows = self._runner.rows
        self._parked += [self._runner.park(row) for row in range(rows.count)]
        self._runner.drop(torch.ones(rows.count, dtype=torch.bool, device=self._runner.device))

    def restart(self, queue: Queue) -> None:
        """Forget what was read of texts that are not read to their ends."""
        for reading in reversed(self._readings):
            self._stop(reading, queue)
        self._readings.clear()

    def cancel(self, request_id: int, sample: int | None = None) -> None:
        """Forget the texts of a request that are in no row, or those of one sample."""
        self._parked = [each for each in self._parked if _without(each, request_id, sample)]
        for reading in self._readings.copy():
            left = _without(reading.enters, request_id, sample)
            if left is None:
                self._tables.release(reading.holding)
                self._readings.remove(reading)
            elif left is not reading.enters:
                self._tables.shrink(reading.holding, reading.size, _samples(left))
                reading.enters = left
        self._stuck = None  # who waits may need less now

    def clear(self) -> None:
        """Forget all texts that are in no row."""
        for reading in self._readings:
            self._tables.release(reading.holding)
        self._readings.clear()
        self._parked.clear()

    def check_pages(self) -> None:
        """Raise RuntimeError unless the pool agrees with what rows and readings hold."""
        holdings = [*self._tables.holdings, *(each.holding for each in self._readings)]
        self._tables.pool.check(holding.pages for holding in holdings)

    def _going(self) -> list[Reading]:
        """The texts that are read now: all but those that can share the next page of an older one once that is read."""
        tables, going, coming = self._tables, list[Reading](), set[bytes]()
        for each in self._readings:
            if each.waits:
                each.cached += tables.find_more(each.holding, each.text, each.size) * tables.page_size
                each.done = each.cached
            # a text that was begun reads on: its next pages are half full, or about to be
            unread = each.done == each.cached
            each.waits = unread and tables.next_page(each.holding, each.text, each.size - tables.least) in coming
            if each.waits:
                continue
            going.append(each)
            if page := tables.next_page(each.holding, each.text, each.size):
                coming.add(page)
        return going

    def _next(self, queue: Queue) -> Admission | Parked | None:
        """The oldest who waits."""
        waiting = [*self._parked, *([queue.first] if queue.first else [])]
        return min(waiting, key=_age, default=None)

    def _begin(self, entrant: Admission | Parked, headroom: int) -> Reading | None:
        """Take pages for an entrant's text; None where they would not leave `headroom` to those who came before."""
        tables, request = self._tables, _request(entrant)
        if isinstance(entrant, Admission):
            text = list(request.prompt)
            size = len(text)
        else:
            text = entrant.text
            size = len(text) - 1
        holding = tables.find(text, size, self._runner.version, request.namespace, request.experts)
        found = len(holding.pages)
        new = tables.pages_of(size) + tables.spare(size, _samples(entrant)) - found
        if new + headroom > tables.pool.available:
            tables.release(holding)
            return None
        holding.pages += tables.pool.take(new)
        cached = found * tables.page_size
        return Reading(entrant, text, size, holding, cached, done=cached)

    def _pass(self, readings: list[Reading], width: int) -> list[tuple[Reading, torch.Tensor]]:
        """Run the model over the next `width` tokens of some texts; those that are read now, and how they end.

        That is the model's last state and, as `Drafter.go_on` takes them, those of the MTP modules that have a further
        one behind them.
        """
        runner, tables = self._runner, self._tables
        modules = runner.speculation.modules if runner.speculation else 0
        starts = [each.done for each in readings]
        places = torch.tensor(starts, device=runner.device).unsqueeze(1) + torch.arange(width, device=runner.device)
        length = max(starts) + width
        table = tables.table([each.holding for each in readings], -(-length // tables.page_size))
        # more than is read: MTP modules' entries need the tokens behind; padding is cached, but never seen
        more = width + modules
        windows = [each.text[each.done : each.done + more] for each in readings]
        tokens = torch.tensor([[*text, *[0] * (more - len(text))] for text in windows], device=runner.device)
        states = list[torch.Tensor]()
        graphs, routed = runner.graphs, any(_request(each.enters).experts for each in readings)
        if graphs and not routed and (graphs.invariant or places.numel() <= SHORT_PASS):
            states.append(graphs.read(tokens, places, table))
        else:
            slots = PagedSlots.at(tables.cache, table, places, length, fresh=not any(starts))
            states.append(runner.states(tokens[:, :width], slots, routed))
            for module in range(modules):
                following = tokens[:, module + 1 : module + 1 + width]
                states.append(runner.reader.predict_further(module, states[-1], following, slots=slots))
        for each, start in zip(readings, starts, strict=True):
            each.done = min(start + width, each.size)
            if each.done < each.size:  # enough is left for the last pass
                each.done = max(start, min(each.done, each.size - tables.least))
            tables.publish(each.holding, each.text, each.done, runner.version)
        states = states[: max(1, modules)]  # nobody reads the last module's
        return [
            (each, torch.stack([state[row, max(0, each.size - 1 - back - start)] for back, state in enumerate(states)]))
            for row, (each, start) in enumerate(zip(readings, starts, strict=True))
            if each.done == each.size
        ]

    def _enter(self, ready: list[tuple[Reading, torch.Tensor]]) -> None:
        if not ready:
            return
        admissions = [each.enters for each, _ in ready if isinstance(each.enters, Admission)]
        for each, _ in ready:
            self._queries += each.size
            self._hits += each.cached
            self._tables.enter(self._tables.fork(each.holding, each.size, _samples(each.enters)))
        first = self._runner.rows.count
        self._runner.enter(admissions, torch.stack([state for _, state in ready]))
        cached = [each.cached for each, _ in ready for _ in range(_samples(each.enters))]
        for tenant, tokens in zip(self._runner.rows.tenants[first:], cached, strict=True):
            tenant.cached = tokens

    def _resume(self, ready: list[tuple[Reading, torch.Tensor]]) -> None:
        if not ready:
            return
        self._tables.enter([each.holding for each, _ in ready])
        parked = [each.enters for each, _ in ready if isinstance(each.enters, Parked)]
        self._runner.resume(parked, torch.stack([state for _, state in ready]))

    def _preempt_youngest(self, queue: Queue) -> None:
        rows = self._runner.rows
        ages = [(tenant.request_id, tenant.sample) for tenant in rows.tenants]
        row = max(range(len(ages)), key=ages.__getitem__)
        youngest = max(self._readings, key=lambda each: each.age, default=None)
        if youngest and youngest.age > ages[row]:
            self._readings.remove(youngest)
            self._stop(youngest, queue)
            return
        self._parked.append(self._runner.park(row))
        finished = torch.zeros(rows.count, dtype=torch.bool, device=self._runner.device)
        finished[row] = True
        self._runner.drop(finished)
        self._preemptions += 1

    def _stop(self, reading: Reading, queue: Queue) -> None:
        """Let a text wait again."""
        self._tables.release(reading.holding)
        if isinstance(reading.enters, Admission):
            queue.put_back(reading.enters)
        else:
            self._parked.append(reading.enters)


def _age(entrant: Admission | Parked) -> tuple[int, int]:
    """The request and the first sample of an entrant: the less, the older."""
    if isinstance(entrant, Admission):
        return entrant.request_id, entrant.samples[0]
    return entrant.row.tenant.request_id, entrant.row.tenant.sample


def _request(entrant: Admission | Parked) -> Request:
    return entrant.request if isinstance(entrant, Admission) else entrant.row.tenant.request


def _without(entrant: Admission | Parked, request_id: int, sample: int | None) -> Admission | Parked | None:
    """Who is left of an entrant where a sample of a request is cancelled, or all of them."""
    if isinstance(entrant, Admission):
        return entrant.without(request_id, sample)
    tenant = entrant.row.tenant
    return None if tenant.request_id == request_id and sample in (None, tenant.sample) else entrant


def _samples(entrant: Admission | Parked) -> int:
    return len(entrant.samples) if isinstance(entrant, Admission) else 1
