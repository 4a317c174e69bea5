"""Tasks that nobody waits for but the end of all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc


@asynccontextmanager
async def behind() -> AsyncIterator[anyio.abc.TaskGroup]:
    """Give a task group whose tasks have all ended when the block has.

    What the block raises is raised as it is, not as part of a group.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except Exception as error:  # noqa: BLE001 - raised below
            failure = error
    if failure:
        raise failure
