"""Runs the model over the active rows: prompts once, then one token a step, or more where drafts are checked ahead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.infer.edits import Edits
from fathom.infer.int8 import require_int8
from fathom.infer.rows import Rows, SavedRow
from fathom.infer.sampler import Choice, draw, draw_each, likeliest, uniform
from fathom.infer.scheduler import PREFILL_TOKENS, Admission
from fathom.infer.speculation import Drafts, Plain, Speculation
from fathom.infer.tables import Tables
from fathom.infer.traces import Traces
from fathom.infer.verify import Rule
from fathom.model import CacheSlots, EngineSlots, LatentCache, RoutingTrace, Streamed, Transformer, streams
from fathom.model.cache import note_experts, noted_experts

if TYPE_CHECKING:
    from fathom.infer.graphs import Graphs

BURST = 32  # tokens
WATCHED_BURST = 8  # where somebody waits for them


@dataclass(frozen=True)
class Parked:
    """A sample that was taken out of its row, to be read again and to go on where it was."""

    text: list[int]  # its prompt and what it drew; the newest token was not read yet
    row: SavedRow
    edits: tuple[Tensor, Tensor]
    traces: tuple[Tensor, ...]


class Runner:
    """A model, its cache and the rows that are being decoded. Call its methods under `torch.inference_mode`.

    Rows have a stretch of `cache` each, or with `tables` pages: somebody else reads prompts into these, and sees to it
    that rows have the pages they write to.

    With `drafts`, their count or "auto", MTP modules guess tokens ahead, which are judged by `rule`: see
    `Speculation`.
    """

    def __init__(
        self,
        model: Transformer,
        rows: int,
        capacity: int,
        drafts: Drafts = 0,
        rule: Rule = "coupled",
        tables: Tables | None = None,
        graphs: bool = True,
        invariant: bool = False,
        int8: bool = False,
    ) -> None:
        weight = model.embedding.weight
        self.model, self.device, self.tables = model, weight.device, tables
        if int8:
            require_int8(model)
        self.reader = Streamed(model, int8) if streams(model, int8) else model  # what passes go through
        self.cache = LatentCache(model.config, 0 if tables else rows, capacity, weight.dtype, weight.device)
        self.rows = Rows(rows, weight.device)
        self.edits = Edits(self.rows, model.config.vocab_size, weight.device)
        self.traces = Traces(self.rows, weight.device)
        self.moe_layers = sum(map(model.config.is_moe_layer, range(model.config.num_hidden_layers)))
        self.version = 0  # of the weights
        self.row_steps = 0  # rows decoded, summed over the steps
        self._reach = 0  # the newest tokens of all active rows lie before this place
        self.graphs: Graphs | None = None
        if tables is not None and weight.is_cuda and not drafts:
            self.graphs = _graphs(model, self.rows, tables, graphs, invariant)
        elif invariant:
            raise ValueError("invariant=True needs pages on a GPU, without drafts; leave it out elsewhere")
        plain = Plain(self._slots, self.states, self._logits, self._draw, self._record)
        self.speculation = (
            Speculation(self.reader, self.rows, self.edits, self.traces, drafts, rule, plain) if drafts else None
        )

    @property
    def burst(self) -> int:
        """Tokens that rows may draw before the host looks at them: one where it has to do with each."""
        if self.graphs is None or self.rows.watched_closely:
            return 1
        return WATCHED_BURST if any(tenant.streams for tenant in self.rows.tenants) else BURST

    def prefill(self, admissions: Sequence[Admission]) -> None:
        """Run each prompt once, give each of its samples a row with a copy of the cache, and draw the first tokens.

        Requests with equal prompts share one run.
        """
        first, texts = self.rows.count, [tuple(each.request.prompt) for each in admissions]
        prompts = list(dict.fromkeys(texts))
        hidden = self._read(prompts, first, routed=any(each.request.experts for each in admissions))
        place = {prompt: number for number, prompt in enumerate(prompts)}
        run = torch.tensor([place[text] for text in texts], device=self.device)  # of each admission
        owner = run[self._owner(admissions)]
        if len(owner) > len(prompts):
            self.cache.copy_rows(first + owner, first + torch.arange(len(owner), device=self.device), hidden.shape[1])
        ends = torch.tensor([len(text) - 1 for text in texts], device=self.device)
        self.enter(admissions, hidden[run, ends].unsqueeze(1), (hidden, owner))

    def enter(
        self,
        admissions: Sequence[Admission],
        ends: Float[Tensor, "P M D"],
        runs: tuple[Float[Tensor, "R T D"], Int[Tensor, " N"]] | None = None,
    ) -> None:
        """Append a row for each sample of prompts that are cached and end in states ends[:, 0]; draw the first tokens.

        With `runs`, the states at all places of some texts and which of them each row has, MTP modules may read the
        prompts later. Else they have, and the rest of `ends` are theirs: see `Drafter.go_on`.
        """
        first, owner = self.rows.count, self._owner(admissions)
        self.rows.add(admissions, owner)
        self.edits.admit(first)
        self._reach = max(self._reach, *(len(each.request.prompt) + 1 for each in admissions))
        end = self.rows.fields(first).position.clone()
        if self.speculation and runs is not None:
            self.speculation.admit(runs[0], end, runs[1], first)
        elif self.speculation:
            self.speculation.go_on(ends[owner], end, first)
        state, place = ends[owner, :1], end.unsqueeze(1) + 1
        drawn = self._draw_next(self._logits(state, place, first)[:, 0], place, first)
        self._record(drawn, first)

    def _owner(self, admissions: Sequence[Admission]) -> Int[Tensor, " N"]:
        """Which admission each of their samples is of."""
        owners = [number for number, each in enumerate(admissions) for _ in each.samples]
        return torch.tensor(owners, device=self.device)

    def park(self, row: int) -> Parked:
        """What is needed to go on with a row that is about to be dropped."""
        self.take_experts(row)
        return Parked(self.text(row), self.rows.save(row), self.edits.save(row), self.traces.save(row))

    def resume(self, parked: Sequence[Parked], ends: Float[Tensor, "P M D"]) -> None:
        """Append parked rows, whose texts are cached up to the newest tokens; `ends` as in `enter`."""
        first = self.rows.count
        self.rows.restore([each.row for each in parked])
        self.edits.admit(first)
        for row, each in enumerate(parked, first):
            self.edits.restore(row, each.edits)
            self.traces.restore(row, each.traces)
        self._reach = max(self._reach, *(len(each.text) for each in parked))
        if self.speculation:
            self.speculation.go_on(ends, self.rows.fields(first).position - 1, first)

    def text(self, row: int) -> list[int]:
        """The prompt of a row and what it drew."""
        return [*self.rows.tenants[row].request.prompt, *self.rows.tokens_from(row, 0)]

    def states(
        self, tokens: Int[Tensor, "N T"], slots: EngineSlots, routed: bool | None = None
    ) -> Float[Tensor, "N T D"]:
        """Run the model over tokens and, for rows that ask or with `routed`, keep the experts beside the cache."""
        if not (self.rows.routed if routed is None else routed):
            return self.reader(tokens, slots=slots)
        trace = RoutingTrace(records=True)
        hidden = self.reader(tokens, slots=slots, trace=trace)
        note_experts(slots, trace.experts)
        return hidden

    def take_experts(self, row: int) -> None:
        """Hand a row's tenant the experts of all places that are read; places that are read again are as they were."""
        routing = self.rows.tenants[row].routing
        if routing is None:
            return
        places = torch.arange(routing.places, int(self.rows.fields().position[row]), device=self.device)
        slots = self._slots(row, places.unsqueeze(0), len(places) + routing.places)
        routing.add(noted_experts(slots, self.moe_layers).cpu())

    def _read(self, prompts: Sequence[Sequence[int]], first: int, routed: bool) -> Float[Tensor, "P T D"]:
        """Fill the cache rows from `first` on with prompts; those shorter than the longest are padded behind."""
        width = max(map(len, prompts))
        tokens = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=self.device)
        places = torch.arange(width, device=self.device).expand_as(tokens)
        slots = self._slots(first, places, width, fresh=True)
        hidden = self.states(tokens, slots, routed)
        if self.speculation:
            last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
            self.speculation.read(hidden, tokens, last, first)
        return hidden

    def decode(self, steps: int = 1) -> None:
        """Draw the next token of every active row, or a burst of them; behind kept drafts also what follows."""
        self.row_steps += self.rows.count * steps
        if self.graphs and not self.rows.watched_closely:
            self.graphs.decode(steps)
            self._reach += steps  # or less
            return
        if self.speculation and self.speculation.decode(self._reach, self._limit):
            self._reach = self._newest_place() + 1
            return
        row = self.rows.fields()
        place = row.position.unsqueeze(1)
        if self.graphs and self.tables and not self.rows.routed:
            hidden = self.graphs.read(row.token.unsqueeze(1), place, self.tables.rows(self.rows.count))
        else:
            hidden = self.states(row.token.unsqueeze(1), self._slots(0, place, self._reach))
        self._record(self._draw_next(self._logits(hidden, place + 1)[:, 0], place + 1))
        if self.speculation:
            self.speculation.keep(hidden)
        self._reach += 1

    def _slots(self, first: int, places: Int[Tensor, "N T"], length: int, fresh: bool = False) -> EngineSlots:
        """Where the tokens of rows from `first` on at `places` are cached; they see the first `length` places."""
        if self.tables is not None:
            return self.tables.slots(first, places, length, fresh)
        return CacheSlots.at(self.cache, first, places, length, fresh)

    def _record(self, choice: Choice, first: int = 0, advance: int | Int[Tensor, " N"] = 1) -> None:
        self.rows.record(choice, first, advance)
        if self.rows.edited:
            self.edits.note(choice.token, first, advance)

    def _logits(
        self, hidden: Float[Tensor, "N T D"], places: Int[Tensor, "N T"], first: int = 0
    ) -> Float[Tensor, "N T V"]:
        """Scores of what rows first .. count - 1 put at `places`, of which traces are kept where a row asks."""
        head = self.graphs.logits if self.graphs else self.reader.logits
        logits = head(hidden.flatten(0, 1)).view(*places.shape, -1)
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

    def weights_may_differ(self) -> None:
        """Look at the weights again before the next pass: somebody may have changed them."""
        if isinstance(self.reader, Streamed):
            self.reader.weights_may_differ()

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
        for row in range(rows.count):
            self.take_experts(row)
        texts = [self.text(row)[:-1] for row in range(rows.count)]  # the newest token is not read yet
        first = 0
        while first < len(texts):
            last = first + 1
            while last < len(texts) and max(map(len, texts[first : last + 1])) * (last + 1 - first) <= PREFILL_TOKENS:
                last += 1
            hidden = self._read(texts[first:last], first, rows.routed)
            if self.speculation:
                owner = torch.arange(last - first, device=self.device)
                self.speculation.admit(hidden, rows.fields().position[first:last] - 1, owner, first)
            first = last

    def drop(self, finished: Bool[Tensor, " N"]) -> None:
        """Take finished rows out; the last active ones move to their places."""
        edited, traced = self.rows.edited, self.rows.traced
        if self.tables is not None:
            self._leave(self.tables, finished.nonzero().flatten().tolist())
        source, target = self.rows.close_ranks(finished)
        if self.tables is not None:
            self.tables.move(source, target, self.rows.count)
        if len(target):
            if self.tables is None:
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

    @property
    def _limit(self) -> int:
        """Places that a row has at most."""
        return self.cache.capacity if self.tables is None else self.tables.capacity

    def _leave(self, tables: Tables, leaving: list[int]) -> None:
        """Let the pages of rows go; full ones can be found by whoever comes with the same text."""
        for row in leaving:
            text = self.text(row)
            done = len(text) - 1  # the newest token was not read yet
            if self.speculation:
                done = min(done, self.speculation.read_up_to(row))
            tables.publish(tables.holdings[row], text, done, self.version)
            tables.release(tables.holdings[row])

    def clear(self) -> None:
        """Take all rows out."""
        if self.tables is not None:
            self.tables.clear()
        self.rows.clear()
        self._reach = 0
        if self.speculation:
            self.speculation.clear()

    def _newest_place(self) -> int:
        return int(self.rows.fields().position.max())


def _graphs(model: Transformer, rows: Rows, tables: Tables, replay: bool, invariant: bool) -> "Graphs":
    from fathom.infer.graphs import Graphs  # needs Triton, which comes with torch for GPUs alone

    return Graphs(model, rows, tables, replay, invariant)


def _column(choice: Choice, column: int) -> Choice:
    return Choice(choice.token[:, column], choice.logprob[:, column])
