"""How many drafts a step checks: what was measured here says whether they pay.

k drafts gain 1 + a_1 + a_1 a_2 + ... tokens a row, a_j being the share of drafts kept at position j, and cost c_k / c_0
of the time of a step without any. The acceptances are decayed counts, the costs medians of the steps of this engine,
each held against steps without drafts of the same time, for machines are faster and slower. A count of drafts that was
not tried yet is priced by the weights it reads (experts met included) and by the costs of those that were. Trying costs
at most the share `TRIALS` of all time: where drafts do not pay, none are made.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

from fathom.plan.serving import tokens_per_step

HOLD = 16  # steps between two choices
TRUSTED = 3  # times from which on their median counts
NEWEST = 15  # costs that are kept of each kind of step with drafts
TRIALS = 0.01  # share of all time that may be lost to trying what does not pay
PATIENCE = 256  # steps between two trials where drafts do not pay
RENEWED = 64  # steps between two measures of steps without drafts where drafts pay
SOON = 16  # the same for a choice that is new; doubled with every measure
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
        self._plain: dict[int, deque[float]] = {}  # seconds of the last steps without drafts, by kind of batch
        self._costs: dict[tuple[int, int], deque[float]] = {}  # of those with drafts, in such steps of the same time
        self._best = 1.0  # gain of the best count known, by which a trial is judged
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
        self.total += seconds + extra
        if not drafts:
            self._plain.setdefault(self._kind, deque(maxlen=TRUSTED + 2)).append(seconds)
            return
        self.lost += extra
        if len(plain := self._plain.get(self._kind, ())) < TRUSTED:
            return
        cost = seconds / median(plain)
        self._costs.setdefault((self._kind, drafts), deque(maxlen=NEWEST)).append(cost)
        if self._trial:
            gain = tokens_per_step(self.acceptance()[:drafts]) / cost
            self.lost = max(0.0, self.lost + seconds * (1 - gain / self._best))

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
        again = self._choice > 0 and self._rest <= 0
        if again or len(self._plain.get(self._kind, ())) < TRUSTED:  # the measure of all others, once in a while anew
            self._confirms, self._held = again, TRUSTED
            if again:
                self._patience = min(2 * self._patience, RENEWED)
                self._rest = self._patience
            return 0
        known = self._known()
        acceptance, costs = self.acceptance(), self._price(rows, known)
        gains = [tokens_per_step(acceptance[:drafts]) / cost for drafts, cost in enumerate(costs)]
        best = max(known, key=lambda drafts: gains[drafts] / (WORTH if drafts != self._choice else 1.0))
        self._best = gains[best]
        untried = [drafts for drafts in range(1, self.most + 1) if drafts not in known]
        hope = max(untried, key=gains.__getitem__, default=0)
        if hope and gains[hope] > max(NEAR * gains[best], 1.0) and self.lost <= TRIALS * self.total:
            return self._try(hope)
        if best == 0 and self._rest <= 0:
            hope = max(range(1, self.most + 1), key=gains.__getitem__)
            worse = max(0.0, costs[hope] - tokens_per_step(acceptance[:hope]))
            if self.lost + TRUSTED * median(self._plain[self._kind]) * worse <= TRIALS * self.total:
                self._rest = PATIENCE
                return self._try(hope)
        if best and not self._choice and not self._confirms:  # newly chosen, by few times: to be confirmed soon
            self._patience = self._rest = SOON
        self._confirms = False
        return best

    def _try(self, drafts: int) -> int:
        self._trial, self._held = True, TRUSTED
        return drafts

    def _price(self, rows: int, known: dict[int, float]) -> list[float]:
        """Time of a step with every count of drafts over one without, as measured or as the nearest measured says."""
        reads = [self._reads(rows, drafts) if drafts else 1.0 for drafts in range(self.most + 1)]
        tried = [drafts for drafts in known if drafts]
        costs = list[float]()
        for drafts, read in enumerate(reads):
            if drafts in known:
                costs.append(known[drafts])
            elif tried:
                near = min(tried, key=lambda other: abs(other - drafts))
                costs.append(1 + max(0.0, known[near] - 1) * (read - 1) / (reads[near] - 1))
            else:
                costs.append(read)
        return costs

    def _known(self) -> dict[int, float]:
        """Medians of the costs of what was tried often enough with batches of this kind."""
        found = {drafts: self._costs.get((self._kind, drafts), ()) for drafts in range(1, self.most + 1)}
        return {0: 1.0} | {drafts: median(costs) for drafts, costs in found.items() if len(costs) >= TRUSTED}
