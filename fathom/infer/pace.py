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

HOLD = 16  # steps between two choices
TRUSTED = 3  # times from which on a median counts
NEWEST = 15  # times that are kept of each kind of step
TRIALS = 0.01  # share of all time that may be lost to trying what does not pay
PATIENCE = 256  # steps between two trials of what does not seem to pay: drafts, or where these do, none
SOON = 16  # the same for a choice that is new; doubled whenever it is confirmed
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
        self._confirms = False
        self._rest, self._patience = 0, SOON  # steps until the next trial, or until no drafts are tried again

    def choose(self, rows: int) -> int:
        """The count of drafts for a step of so many rows."""
        kind = rows if rows < 4 else round(4 * math.log2(rows)) + 1  # batches within a fifth cost much the same
        self._held -= 1
        self._rest -= 1
        if self._held <= 0 or kind != self._kind:
            self._kind, self._held = kind, HOLD
            self._choice = self._decide(rows)
        return self._choice

    def note(self, drafts: int, seconds: float, extra: float = 0.0) -> None:
        """A step took so long, and what had to be made up for before it `extra` seconds."""
        kind = (self._kind, drafts)
        if kind not in self._times:
            self._times[kind] = deque(maxlen=NEWEST)
        self._times[kind].append(seconds)
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
        times = self._medians()
        again = self._choice > 0 and self._rest <= 0
        if 0 not in times or again:  # the measure of all others, and once in a while anew: the machine may have changed
            self._confirms, self._held = again, TRUSTED
            if again:
                self._patience = min(2 * self._patience, PATIENCE)
                self._rest = self._patience
            return 0
        acceptance, costs = self.acceptance(), self._costs(rows, times)
        gains = [tokens_per_step(acceptance[:drafts]) / cost for drafts, cost in enumerate(costs)]
        best = max(times, key=lambda drafts: gains[drafts] / (WORTH if drafts != self._choice else 1.0))
        self._plain[self._kind] = times[0] / gains[best]  # seconds a token of a row takes at best
        untried = [drafts for drafts in range(1, self.most + 1) if drafts not in times]
        hope = max(untried, key=gains.__getitem__, default=0)
        if hope and gains[hope] > max(NEAR * gains[best], 1.0) and self.lost <= TRIALS * self.total:
            return self._try(hope)
        if best == 0 and self._rest <= 0:
            hope = max(range(1, self.most + 1), key=gains.__getitem__)
            loss = TRUSTED * times[0] * max(0.0, costs[hope] - tokens_per_step(acceptance[:hope]))
            if self.lost + loss <= TRIALS * self.total:
                self._rest = PATIENCE
                return self._try(hope)
        if best and not self._choice and not self._confirms:  # newly chosen, by few times: to be confirmed soon
            self._patience = self._rest = SOON
        self._confirms = False
        return best

    def _try(self, drafts: int) -> int:
        self._trial, self._held = True, TRUSTED
        return drafts

    def _costs(self, rows: int, times: dict[int, float]) -> list[float]:
        """Time of a step with every count of drafts over one without."""
        reads = [self._reads(rows, drafts) if drafts else 1.0 for drafts in range(self.most + 1)]
        tried = [drafts for drafts in times if drafts]
        costs = list[float]()
        for drafts, read in enumerate(reads):
            if drafts in times:
                costs.append(times[drafts] / times[0])
            elif tried:  # the nearest says how far times exceed what the reads say
                near = min(tried, key=lambda other: abs(other - drafts))
                excess = max(0.0, times[near] / times[0] - 1)
                costs.append(1 + excess * (read - 1) / (reads[near] - 1))
            else:
                costs.append(read)
        return costs

    def _medians(self) -> dict[int, float]:
        """Seconds of the steps of this kind, by their drafts, as far as there were enough."""
        found = {drafts: self._times.get((self._kind, drafts), ()) for drafts in range(self.most + 1)}
        return {drafts: median(times) for drafts, times in found.items() if len(times) >= TRUSTED}
