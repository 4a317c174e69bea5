"""A request to end a sandbox, and the record of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from corral_worker.sandbox.outcome import KillCause


class Stop:
    """Why and when a sandbox is to end. The first request counts, later ones change nothing."""

    def __init__(self) -> None:
        self._scopes: list[anyio.CancelScope] = []
        self.cause: KillCause | None = None
        self.requested_at = 0.0
        """Monotonic seconds."""

    def request(self, cause: KillCause) -> None:
        """Ask for the end. Returns at once."""
        if self.cause is None:
            self.cause = cause
            self.requested_at = time.monotonic()
            for scope in self._scopes:
                scope.cancel()

    @contextmanager
    def cancelling(self, scope: anyio.CancelScope) -> Iterator[None]:
        """Cancel a scope when somebody asks before the block has ended, or has asked already."""
        self._scopes.append(scope)
        if self.cause is not None:
            scope.cancel()
        try:
            yield
        finally:
            self._scopes.remove(scope)
