"""How many drafts a step checks: what was measured here says whether they pay.

k drafts gain 1 + a_1 + a_1 a_2 + ... tokens a row, a_j being the share of drafts kept at position j, and cost c_k / c_0
of the time of a step without any. The acceptances are decayed counts, the times medians of the steps of this engine; a
count of drafts that was not tried yet is priced by the weights it reads (experts met included) and by the times of
those that were. Trying costs at most the share `TRIALS` of all time: where drafts do not pay, none are made.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

from fathom.plan.serving import tokens_per_step

HOLD = 8  # steps between two choices
TRUSTED = 3  # times from which on a median counts
NEWEST = 15  # times that are kept of each kind of step
TRIALS = 0.01  # share of all time that may be lost to trying what does not pay
PATIENCE = 256  # steps between two trials of what does not seem to pay: drafts, or where these do, none
WORTH = 1.02  # what another count must gain over the present best, for the times are noisy
NEAR = 0.95  # an untried count is tried where it promises so much of the best
DECAY = 0.99  # of the counts of kept and checked drafts, at every step that checks some
FIRST_GUESS = 0.7  # acceptance before any draft was checked


class Pace:
    """Chooses how many drafts, `most` at most, the next step checks; `reads(rows, k)` prices what was not tried."""

    def __init__(self, most: int, reads: Callable[[int, int], float]) -> None:
        self.most, self._reads = most, reads
        self.lost = self.total = 0.0  # seconds: lost to trials, and of all steps
        self._checked, self._kept = [0.0] * most, [0.0] * most
        self._times: dict[tuple[int, int], deque[float]] = {}
        self._plain: dict[int, float] = {}  # by kind of batch, the price a trial is held against
        self._choice, self._held, self._kind = 0, 0, -1
        self._trial = False
        self._rest = 0  # steps until the next trial where drafts do not pay

    def choose(self, rows: int) -> int:
        """The count of drafts for a step of so many rows."""
        kind = rows if rows < 4 else round(4 * math.log2(rows)) + 1  # batches within a fifth cost much the same
        self._held -= 1
        self._rest -= 1
        if self._held <= 0 or kind != self._kind:
            self._kind, self._held = kind, HOLD
            self._choice = self._decide(rows)
        return self._choice

    def note(self, rows: int, drafts: int, seconds: float, extra: float = 0.0) -> None:
        """A step took so long, and what had to be made up for before it `extra` seconds."""
        self._times.setdefault((self._kind, drafts), deque(maxlen=NEWEST)).append(seconds)
        self.total += seconds + extra
        if drafts:
            self.lost += extra
        if self._trial and self._kind in self._plain:
            gained = tokens_per_step(self.acceptance()[:drafts])
            self.lost = max(0.0, self.lost + seconds - gained * self._plain[self._kind])

    def count(self, checked: Sequence[int], kept: Sequence[int]) -> None:
        """So many drafts were checked at every position, and so many of them kept."""
        for position, numbers in enumerate(zip(checked, kept, strict=True)):
            for tally, number in zip((self._checked, self._kept), numbers, strict=True):
                tally[position] = DECAY * tally[position] + number

    def acceptance(self) -> list[float]:
        """Shares of drafts kept by position; where few were checked, near that of the position before."""
        shares, guess = list[float](), FIRST_GUESS
        for checked, kept in zip(self._checked, self._kept, strict=True):
            guess = (kept + guess) / (checked + 1)
            shares.append(guess)
        return shares

    def _decide(self, rows: int) -> int:
        self._trial = False
        plain = self._median(0)
        if plain is None or self._rest <= 0 < self._choice:  # the measure of all others, and once in a while anew
            self._rest, self._held = PATIENCE, TRUSTED
            return 0
        acceptance = self.acceptance()
        costs = [1.0, *(self._cost(rows, drafts, plain) for drafts in range(1, self.most + 1))]
        gains = [tokens_per_step(acceptance[:drafts]) / cost for drafts, cost in enumerate(costs)]
        known = [drafts for drafts in range(self.most + 1) if self._median(drafts) is not None]
        best = max(known, key=lambda drafts: gains[drafts] / (WORTH if drafts != self._choice else 1.0))
        self._plain[self._kind] = plain / gains[best]  # seconds a token of a row takes at best
        hopes = [drafts for drafts in range(1, self.most + 1) if drafts not in known]
        hope = max(hopes, key=gains.__getitem__, default=0)
        if hope and gains[hope] > max(NEAR * gains[best], 1.0) and self.lost <= TRIALS * self.total:
            return self._try(hope)
        if best == 0 and self._rest <= 0:
            candidate = max(range(1, self.most + 1), key=gains.__getitem__)
            loss = TRUSTED * plain * max(0.0, costs[candidate] - tokens_per_step(acceptance[:candidate]))
            if self.lost + loss <= TRIALS * self.total:
                self._rest = PATIENCE
                return self._try(candidate)
        return best

    def _try(self, drafts: int) -> int:
        self._trial, self._held = True, TRUSTED
        return drafts

    def _cost(self, rows: int, drafts: int, plain: float) -> float:
        """Time of a step with so many drafts over one without."""
        if (measured := self._median(drafts)) is not None:
            return measured / plain
        read = self._reads(rows, drafts)
        tried = [(abs(other - drafts), other) for other in range(1, self.most + 1) if self._median(other) is not None]
        if not tried:
            return read
        other = min(tried)[1]  # the nearest says how far times exceed what the reads say
        excess = (self._median(other) or 0.0) / plain - 1
        return 1 + max(0.0, excess) * (read - 1) / (self._reads(rows, other) - 1)

    def _median(self, drafts: int) -> float | None:
        times = self._times.get((self._kind, drafts), ())
        return median(times) if len(times) >= TRUSTED else None
