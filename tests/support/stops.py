"""Requests to end a sandbox."""

from __future__ import annotations

import anyio

from corral_worker.sandbox.stop import Stop


async def asked(stop: Stop) -> None:
    """Return when somebody asks for the end, or has asked already."""
    with anyio.CancelScope() as scope, stop.cancelling(scope):
        await anyio.sleep_forever()
