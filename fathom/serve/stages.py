"""The models of one server: the one that is served, and other stages of its run beside it.

A run leaves a model after every stage. `NAME@sft` is what the stage `sft` left of the run that is served as `NAME`: it
is loaded when somebody first asks for it, with an engine of its own, and goes again when others need the room.
"""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from fathom.checkpoint.files import list_checkpoints
from fathom.checkpoint.find import STAGES, holds_weights
from fathom.infer.speaker import Speaker, load_speaker
from fathom.serve.desk import Desk
from fathom.serve.errors import ApiError

log = logging.getLogger("fathom.serve")
STAGE_ROWS = 4  # most completions that one of the other stages writes together


class Stages:
    """Finds the desk of a model's id."""

    def __init__(self, desk: Desk, source: Path) -> None:
        self.desk = desk  # of the model that is served
        self._source = source
        self._served = desk.speaker.name.partition("/")[0]  # the stage it is of
        self._desks: dict[str, Desk] = {}  # of other stages, the longest unused first
        self._one_at_a_time = asyncio.Lock()

    @property
    def others(self) -> dict[str, Path]:
        """Ids of the other stages that can be asked, the first trained first, with their newest checkpoints."""
        if not self.desk.options.stages or holds_weights(self._source):
            return {}
        found = {stage: list_checkpoints(self._source / stage) for stage in reversed(STAGES) if stage != self._served}
        return {f"{self.desk.name}@{stage}": paths[-1] for stage, paths in found.items() if paths}

    def entries(self) -> list[dict[str, Any]]:
        """What /v1/models lists."""
        return [self._entry(name) for name in (self.desk.name, *self.others)]

    def entry(self, name: str) -> dict[str, Any]:
        """One of them. Raises ApiError 404 for a model that is not served."""
        self.require(name)
        return self._entry(name)

    def require(self, name: str | None) -> None:
        """Raise ApiError 404 for a model that is not served."""
        if name in (None, self.desk.name) or name in (others := self.others):
            return
        names = " and ".join(repr(each) for each in (self.desk.name, *others))
        raise ApiError(404, f"the model {name!r} is not served; this server has {names}", "model", "model_not_found")

    async def find(self, name: str | None) -> Desk:
        """The desk that serves a model; it is loaded where it must be.

        Raises ApiError: 404 for a model that is not served, 503 where all others that fit are busy.
        """
        if name in (None, self.desk.name):
            return self.desk
        self.require(name)
        self.desk.require_open()
        async with self._one_at_a_time:
            return await self._open(str(name), self.others[str(name)])

    def follow(self, speaker: Speaker) -> None:
        """The weights of `speaker` are served from now on."""
        self._served = speaker.name.partition("/")[0]

    async def drain(self, seconds: float) -> None:
        """Let nobody in any more and wait for those inside; after `seconds` the rest fail."""
        await asyncio.gather(*(desk.drain(seconds) for desk in (self.desk, *self._desks.values())))

    async def stop(self) -> None:
        """End all engines."""
        for name in list(self._desks):
            await self._close(name)
        await self.desk.loop.stop()

    async def _open(self, name: str, checkpoint: Path) -> Desk:
        desk = self._desks.pop(name, None)
        if desk and desk.loop.alive and desk.speaker.name == checkpoint.name:
            self._desks[name] = desk  # the newest used
            return desk
        if desk:  # its engine failed, or its stage was trained on
            self._desks[name] = desk
            await self._close(name)
        await self._make_room()
        speaker = await asyncio.to_thread(self._load, checkpoint)
        options = replace(self.desk.options, rows=min(self.desk.options.rows, STAGE_ROWS))
        desk = Desk(speaker, options, name, self.desk.metrics.beside(name))
        desk.loop.start()
        self._desks[name] = desk
        log.info("loaded %s from %s", name, checkpoint)
        return desk

    def _load(self, checkpoint: Path) -> Speaker:
        served = self.desk.speaker
        try:
            speaker = load_speaker(checkpoint, served.model.embedding.weight.device)
        except (ValueError, OSError) as error:
            raise ApiError(503, f"{checkpoint.parent.name} could not be loaded: {error}", code="load_failed") from error
        return replace(speaker, sampling=served.sampling)

    async def _make_room(self) -> None:
        while len(self._desks) >= self.desk.options.stages:
            idle = [name for name, desk in self._desks.items() if not desk.samples]
            if not idle:
                raise ApiError(
                    503,
                    f"{' and '.join(self._desks)} are loaded and busy, and no more of the run's stages are held at "
                    "once; try again later",
                    code="stages_busy",
                    retry_after_s=5,
                )
            await self._close(idle[0])

    async def _close(self, name: str) -> None:
        desk = self._desks.pop(name)
        await desk.loop.stop()
        desk.metrics.forget()

    def _entry(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.desk.started,
            "owned_by": "fathom",
            "max_model_len": self.desk.limits.context,
        }
