"""A small reasoning model that ships with the package, so that everything can be tried offline, in seconds.

It is what `fathom run laptop --seed 0` left: 449 thousand parameters in float32 that play countdown, solving 83.7 % of
500 held-out problems when sampled and 88.4 % greedily (95 % intervals 80.9 to 86.5 % and 85.3 to 90.9 %), where its
fine-tuned beginning solved 32.4 % and 54.4 %. ledger.jsonl has these scores with commit, machine and hashes; of the
run's directory only the optimizer, the earlier stages, metrics and shards are left out.
"""

from pathlib import Path

RUN = Path(__file__).parent  # a run directory
