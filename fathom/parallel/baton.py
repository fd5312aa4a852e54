"""Two passes that take turns: while one waits for a message, the other computes."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import Tensor


class Baton:
    """Whoever holds it runs. Outside of `together` passing it on does nothing.

    Turns, not a race: processes that talk to each other within both passes send their messages in one order.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: int | None = None  # 0 or 1
        self._runners: dict[int, int] = {}  # thread to 0 or 1, of those not yet finished
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="backward")
        self.pairs = 0  # that ran together

    def pass_on(self) -> None:
        """Let the other run until it passes the baton back or is finished."""
        me = self._runners.get(threading.get_ident())
        if me is None or len(self._runners) < 2:
            return
        with self._changed:
            self._holder = 1 - me
            self._changed.notify()
            self._changed.wait_for(lambda: self._holder == me)

    def together(self, first: Callable[[], None], second: Callable[[], None]) -> None:
        """Run both to their end, `second` in a thread of its own; `first` begins. Raises what one of them raised."""
        ready = threading.Event()

        def await_turn() -> None:
            with self._changed:
                self._runners[threading.get_ident()] = 1
                ready.set()
                self._changed.wait_for(lambda: self._holder == 1)
            try:
                second()
            finally:
                self._finish(1)

        self._holder = 0
        self._runners = {threading.get_ident(): 0}
        other = self._helper.submit(await_turn)
        ready.wait()
        self.pairs += 1
        try:
            first()
        finally:
            self._finish(0)
            other.result()

    def _finish(self, me: int) -> None:
        with self._changed:
            del self._runners[threading.get_ident()]
            self._holder = 1 - me
            self._changed.notify()


def pause_on_the_way_back(x: Tensor, pause: Callable[[], None]) -> Tensor:
    """`x` as it is; `pause` is called when its gradient has been asked for, and before anything reads it."""
    return cast(Tensor, _PauseOnTheWayBack.apply(x, pause))


class _PauseOnTheWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pause: Callable[[], None]) -> Tensor:
        ctx.pause = pause
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.pause()
        return grads[0], None
