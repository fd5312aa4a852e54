"""What changes the logits of a row before it draws: penalties, bias, ruled-out tokens, forced tokens."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.infer.mask import Mask, fixed
from fathom.infer.request import Request
from fathom.infer.rows import NO_TOKEN, Rows
from fathom.infer.tenant import Tenant

NEVER = 1 << 40  # a place behind all rows: tokens are not to be forced yet
OVER = -NEVER  # and before all: they are not to be forced any more
PLAN = 5  # numbers of a row in front of its forced tokens: free, begin, after, since, unless


class Edits:
    """State of the rows whose logits are changed; others are passed over. Tables come with the first who need them.

    Every change depends on nothing but the request and the tokens recorded so far. The runner records each token before
    the next is drawn, a kept draft too, so drafts and the tokens that check them are drawn by the same law.
    """

    def __init__(self, rows: Rows, vocab_size: int, device: torch.device) -> None:
        self._rows, self._vocab_size, self._device = rows, vocab_size, device
        none = torch.zeros(rows.capacity, 0, device=device)
        self._drawn = none.int()  # (rows, V): how often a completion drew each token
        self._read = none.bool()  # (rows, V): whether the prompt holds it
        self._bias = none  # (rows, V): -inf where a fixed mask rules a token out
        self._penalties = torch.zeros(rows.capacity, 3, device=device)  # presence, frequency, repetition
        self._plan = torch.zeros(rows.capacity, PLAN, dtype=torch.int64, device=device)

    def admit(self, first: int) -> None:
        """Set up rows first .. count - 1, which have drawn nothing."""
        biases: dict[int, Tensor] = {}  # samples of one request share theirs
        for row in self._rows.edited:
            if row < first:
                continue
            tenant = self._rows.tenants[row]
            request, s = tenant.request, tenant.request.sampling
            self._reserve(request)
            self._penalties[row] = torch.tensor([s.presence_penalty, s.frequency_penalty, s.repetition_penalty])
            self._plan[row] = torch.tensor(_plan(request, self._plan.shape[1]), device=self._device)
            if self._drawn.shape[1]:
                self._drawn[row] = 0
                prompt = torch.tensor(list(request.prompt), device=self._device)
                self._read[row].zero_().index_fill_(0, prompt, True)
            if self._bias.shape[1]:
                if tenant.request_id not in biases:
                    biases[tenant.request_id] = self._bias_of(request)
                self._bias[row] = biases[tenant.request_id]

    def save(self, row: int) -> tuple[Int[Tensor, " V"], Int[Tensor, ""]]:
        """What depends on the tokens that a row drew: how often it drew each, and where forcing begins."""
        return self._drawn[row].clone(), self._plan[row, 1].clone()

    def restore(self, row: int, saved: tuple[Int[Tensor, " V"], Int[Tensor, ""]]) -> None:
        """Set what `save` gave for a row that was admitted anew; a table that came since counts nothing of it."""
        drawn, begin = saved
        self._drawn[row, : len(drawn)] = drawn
        self._plan[row, 1] = begin

    def note(self, token: Int[Tensor, " N"], first: int, advance: int | Int[Tensor, " N"]) -> None:
        """Take note of the token that rows first .. count - 1 recorded, again where they `advance` by 0.

        Where they advance by -1 its count is taken back.
        """
        rows, span = self._rows, slice(first, self._rows.count)
        if self._drawn.shape[1]:
            times = torch.as_tensor(advance, device=self._device).int().expand_as(token)
            self._drawn[span].scatter_add_(1, token.unsqueeze(1), times.unsqueeze(1))
        position = rows.fields(first).position
        _, begin, after, since, unless = self._plan[span, :PLAN].unbind(1)
        cancels = (token == unless) & (begin < NEVER) & (position < begin)
        opens = (token == since) & (begin == NEVER)
        begin.copy_(torch.where(opens, position + 1 + after, begin.masked_fill(cancels, OVER)))

    @contextmanager
    def supposing(self) -> Generator[Callable[[Int[Tensor, " N"]], None]]:
        """Yields a function that takes drafts of all active rows for recorded; behind the block none of them is."""
        rows, plan, supposed = self._rows, self._plan.clone(), list[Tensor]()
        position = rows.fields().position

        def suppose(token: Int[Tensor, " N"]) -> None:
            position.add_(1)
            self.note(token, 0, 1)
            supposed.append(token)

        try:
            yield suppose
        finally:
            position.sub_(len(supposed))
            for token in supposed:
                self.note(token, 0, -1)
            self._plan.copy_(plan)

    def apply(
        self, logits: Float[Tensor, "N V"], first: int = 0, active: Bool[Tensor, " N"] | None = None
    ) -> Float[Tensor, "N V"] | None:
        """Changed logits of rows first .. count - 1 for their next tokens; None where no row changes any.

        Rows that are not `active` draw a token that nobody keeps: no callable is asked for them.
        """
        index = [row for row in self._rows.edited if row >= first]
        if not index:
            return None
        row = torch.tensor(index, device=self._device)
        x = logits[row - first]
        if self._drawn.shape[1]:
            x = penalise(x, self._drawn[row], self._read[row], *self._penalties[row].unsqueeze(2).unbind(1))
        if self._bias.shape[1]:
            x += self._bias[row]
        place = self._rows.fields().position[row] + 1
        self._keep_going(x, row, place)
        forced = self._force(x, row, place)
        self._ask(x, index, forced, first, active)
        return logits.index_copy(0, row - first, x)

    def move(self, source: Int[Tensor, " M"], target: Int[Tensor, " M"]) -> None:
        """Rows `source` have moved to `target`."""
        for table in (self._drawn, self._read, self._bias, self._penalties, self._plan):
            table[target] = table[source]

    def _reserve(self, request: Request) -> None:
        if request.sampling.penalises and not self._drawn.shape[1]:
            self._drawn, self._read = (F.pad(each, (0, self._vocab_size)) for each in (self._drawn, self._read))
        if (request.logit_bias or isinstance(request.allow, frozenset)) and not self._bias.shape[1]:
            self._bias = F.pad(self._bias, (0, self._vocab_size))
        forced = len(request.forced.tokens) if request.forced else 0
        if (more := PLAN + forced - self._plan.shape[1]) > 0:
            self._plan = F.pad(self._plan, (0, more), value=NO_TOKEN)

    def _bias_of(self, request: Request) -> Float[Tensor, " V"]:
        bias = torch.zeros(self._vocab_size, device=self._device)
        if isinstance(request.allow, frozenset):
            bias.masked_fill_(~fixed(request.allow, self._vocab_size, self._device), -torch.inf)
        for token, value in request.logit_bias.items():
            bias[token] += value
        return bias

    def _keep_going(self, x: Float[Tensor, "K V"], row: Int[Tensor, " K"], place: Int[Tensor, " K"]) -> None:
        """Rule out the stop ids of rows whose completion is still too short to end."""
        stops = self._rows.stop_ids[row]  # (K, S)
        early = (place < self._plan[row, 0]).unsqueeze(1)
        x.scatter_add_(1, stops.clamp(min=0), torch.where(early & (stops != NO_TOKEN), -torch.inf, 0.0))

    def _ask(
        self, x: Float[Tensor, "K V"], index: list[int], forced: Tensor | None, first: int, active: Tensor | None
    ) -> None:
        """Rule out what callables do not allow; a row whose callable fails is at its end."""
        rows = self._rows
        if all(rows.tenants[row].mask is None for row in index):
            return
        silent = [False] * len(index) if forced is None else forced.tolist()
        live = [True] * rows.count if active is None else [False] * first + active.tolist()
        for k, row in enumerate(index):
            tenant = rows.tenants[row]
            heeded = live[row] and not silent[k] and tenant.error is None
            if tenant.mask and heeded and not self._ask_one(x[k], tenant.mask, tenant, row):
                rows.end(row)

    def _ask_one(self, x: Float[Tensor, " V"], mask: Mask, tenant: Tenant, row: int) -> bool:
        new = self._rows.tokens_from(row, mask.known)
        try:
            allowed = mask.ask(new, self._vocab_size, self._device)
            if allowed is None:
                return True
            left = x.masked_fill(~allowed, -torch.inf)
            if left.max() == -torch.inf:
                raise ValueError("no token is left to draw: allow, min_tokens and the stop ids rule all of them out")
        except Exception as error:  # whatever a request's own callable raises is that request's trouble alone
            tenant.fail(error, mask.known)
            return False
        x.copy_(left)
        return True

    def _force(
        self, x: Float[Tensor, "K V"], row: Int[Tensor, " K"], place: Int[Tensor, " K"]
    ) -> Bool[Tensor, " K"] | None:
        """Leave one token to rows that have a forced one at `place`; which these are, None where there are none."""
        width = self._plan.shape[1] - PLAN
        if not width:
            return None
        step = place - self._plan[row, 1]
        token = self._plan[row, PLAN + step.clamp(0, width - 1)]
        forced = (step >= 0) & (step < width) & (token != NO_TOKEN)
        only = torch.full_like(x, -torch.inf).scatter_(1, token.clamp(min=0).unsqueeze(1), 0.0)
        x.copy_(torch.where(forced.unsqueeze(1), only, x))
        return forced


def penalise(
    logits: Float[Tensor, "N V"],
    drawn: Int[Tensor, "N V"],
    read: Bool[Tensor, "N V"],
    presence: Float[Tensor, "N 1"],
    frequency: Float[Tensor, "N 1"],
    repetition: Float[Tensor, "N 1"],
) -> Float[Tensor, "N V"]:
    """Logits after penalties for tokens `drawn` so often by the completion, or `read` in the prompt.

    The repetition penalty is of both and comes first: positive logits / penalty, others * penalty (CTRL 4.1). Frequency
    and presence penalties are of the completion alone: logit - frequency * drawn - presence * (drawn > 0) (OpenAI API).
    """
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    return torch.where((drawn > 0) | read, scaled, logits) - frequency * drawn - presence * (drawn > 0)


def _plan(request: Request, width: int) -> list[int]:
    """A row's numbers: the first place that may hold a stop id, where forcing begins, and what starts and ends that."""
    start, forced = len(request.prompt), request.forced
    free = start + request.sampling.min_tokens
    if forced is None:
        return [free, OVER, 0, NO_TOKEN, NO_TOKEN, *[NO_TOKEN] * (width - PLAN)]
    begin = start + forced.after if forced.since is None else NEVER
    ids = [NO_TOKEN if each is None else each for each in (forced.since, forced.unless)]
    return [free, begin, forced.after, *ids, *forced.tokens, *[NO_TOKEN] * (width - PLAN - len(forced.tokens))]
