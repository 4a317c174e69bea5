"""Which way programs are started in sandboxes that wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import structlog

from corral.result import StartWay
from corral_worker.sandbox.commands import RunscContainers
from corral_worker.sandbox.containers import Containers
from corral_worker.sandbox.control import ControlSocket
from corral_worker.sandbox.runsc import Runsc

BEST_FIRST: Sequence[StartWay] = ("control_socket", "command_line")

_TRY_AGAIN_S = 600.0
"""Seconds until a better way than the one that works is tried again: it may have been the host."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A way by which a sandbox's first program did not run as it should."""

    way: StartWay
    why: str


class Ways:
    """Knows, of the runsc that is installed, which way was seen to work.

    Args:
        runsc: the runtime.
        clock: monotonic seconds.
    """

    def __init__(self, runsc: Runsc, clock: Callable[[], float] = time.monotonic) -> None:
        self._runsc = runsc
        self._clock = clock
        self._seen: tuple[tuple[int, ...] | None, StartWay] | None = None
        self._try_again_at = 0.0
        self._log = structlog.get_logger()

    def to_try(self) -> Sequence[StartWay]:
        """Return the ways to try, one after the other: only one, if that was seen to work."""
        if self._seen is None or self._seen[0] != self._runsc.identity():
            return BEST_FIRST
        way = self._seen[1]
        if way != BEST_FIRST[0] and self._clock() >= self._try_again_at:
            return BEST_FIRST
        return (way,)

    def worked(self, way: StartWay, failed: Sequence[Failure]) -> None:
        """Remember a way that works, and say so if a better one has failed."""
        seen = (self._runsc.identity(), way)
        if failed:
            self._try_again_at = self._clock() + _TRY_AGAIN_S
        if seen == self._seen:
            return
        if failed:
            self._log.warning(
                "pool.slower_way",
                uses=way,
                failed={failure.way: failure.why for failure in failed},
                detail="this runsc does not take programs over its control socket as corral gives"
                " them: jobs in sandboxes that wait start by the command line, some 50 ms later;"
                " use a runsc that corral was tried with (README, Sandboxes that wait)",
            )
        elif self._seen is not None:
            self._log.info("pool.way", uses=way)
        self._seen = seen

    def open(
        self, way: StartWay, sandbox: str, directory: Path
    ) -> AbstractAsyncContextManager[Containers]:
        """Return what starts programs in a sandbox; what it starts them with ends with the block.

        Args:
            way: by which way.
            sandbox: the sandbox's id.
            directory: the sandbox's own.
        """
        if way == "control_socket":
            return ControlSocket(self._runsc.control_socket(sandbox))
        return RunscContainers(self._runsc, sandbox, directory)
