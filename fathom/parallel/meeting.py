"""Where torchrun's processes meet: in a corner of the agent's store that no earlier attempt has used.

The agent keeps one store for all attempts, and what processes wrote there before they were killed is still in it: those
that start again would look for the dead at their old addresses. The agents do not agree on a count of attempts either,
as only those whose own processes failed count one. So the processes find out who is alive: each says a word that it has
just made up, the first one answers every word it sees with a word of its own, and an answer to one's own word is fresh.
"""

import os
import time
import uuid
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # torch.distributed does not export them

PAUSE = 0.02  # seconds between looks


def meet(patience: timedelta) -> Store | None:
    """The store of this attempt, once all processes have come; None where torchrun keeps none, as without its c10d.

    Whoever waits in vain is ended by the agent, which sees that another has failed.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return find_each_other(TCPStore(address, port, size, is_master=False, timeout=patience), rank, size)


def find_each_other(store: Store, rank: int, size: int) -> Store:
    """A part of `store` that the `size` processes which call this now have for themselves."""
    word = uuid.uuid4().hex
    corner = _welcome(store, word, size) if rank == 0 else _greet(store, word, rank)
    return PrefixStore(corner, store)


def _welcome(store: Store, word: str, size: int) -> str:
    """Answer everyone's newest word until all have taken this process's word up."""
    answered: dict[int, str] = {}
    while store.add(f"{word}/here", 0) < size - 1:
        for rank in range(1, size):
            theirs = _read(store, f"hello/{rank}")
            if theirs and theirs != answered.get(rank):
                store.set(f"welcome/{rank}", f"{theirs} {word}")
                answered[rank] = theirs
        time.sleep(PAUSE)
    return word


def _greet(store: Store, word: str, rank: int) -> str:
    """Say a word until it is answered; the first process's word."""
    store.set(f"hello/{rank}", word)
    while not (answer := _read(store, f"welcome/{rank}")).startswith(word):
        time.sleep(PAUSE)
    first = answer.split()[1]
    store.add(f"{first}/here", 1)
    return first


def _read(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""
