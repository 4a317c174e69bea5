"""Writing how attempts ended, or handing their jobs back."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from typing import Final, cast

import anyio
import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from corral.scripts import Argument, Script
from corral_worker.queue.batcher import Batcher
from corral_worker.queue.leases import Lease

MOST_INLINE_BYTES: Final = 256 * 1024
"""Most bytes a result may have to stand in the results stream itself."""
_MOST_BYTES_AT_ONCE = 2 * 1024 * 1024
"""In one script. On its way it is in memory three times."""
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how many results are kept."""

    result_s: float = 3600.0
    stream_entries: int = 1000
    """Of each tenant; 0 for no results stream."""

    def words(self) -> tuple[int, int, int]:
        """Return what the scripts take."""
        return round(self.result_s * 1000), self.stream_entries, MOST_INLINE_BYTES


class Commit(enum.IntEnum):
    """What became of a commit."""

    REFUSED = 0
    """The lock is another attempt's, or gone: nothing was written."""
    DONE = 1
    CANCELLED = 2
    """Not handed back, for the job was cancelled meanwhile."""
    GIVEN_UP = 3
    """Redis did not take it before the lease, or the worker, was to end."""


class _Item(msgspec.Struct, frozen=True):
    lease: Lease
    what: str
    first: bytes | str
    second: str
    third: str

    def words(self) -> tuple[Argument, ...]:
        claim = self.lease.claim
        return (
            *(claim.tenant, claim.job_id, claim.token),
            *(self.what, self.first, self.second, self.third),
        )


class Commits:
    """Ends attempts, many with one script; each is fenced by its token.

    Args:
        redis: where the queues are.
        keep: how long and how many results are kept.
        lease_s: seconds for which a commit is tried once the worker is to end; until
            then it is as long as the lease is renewed.
    """

    def __init__(self, redis: Redis, *, keep: Keep, lease_s: float) -> None:
        self._redis = redis
        self._keep = keep
        self._lease_s = lease_s
        self._script = Script(__package__, "commit")
        self._batcher: Batcher[_Item, int] = Batcher(
            self._send,
            most_size=_MOST_BYTES_AT_ONCE,
            size=lambda item: len(item.first),
        )
        self._hurried = False
        self._log = structlog.get_logger()

    def hurry(self) -> None:
        """Give up what Redis has not taken for the time of a lease: the worker is to end."""
        self._hurried = True

    async def run(self) -> None:
        """Send commits until cancelled."""
        await self._batcher.run()

    async def final(self, lease: Lease, data: bytes, *, outcome: str, dead: str = "") -> Commit:
        """Write the job's one and only result.

        Args:
            lease: the attempt's.
            data: the encoded result.
            outcome: the result's outcome or the error's code.
            dead: why the job goes to the dead letters, if it does.
        """
        return await self._commit(_Item(lease, "final", data, outcome, dead))

    async def hand_back(
        self, lease: Lease, *, started: bool, within_s: float | None = None
    ) -> Commit:
        """Put the job back in its place on its queue.

        Args:
            lease: the attempt's.
            started: whether the program may have begun; if not, the attempt
                does not count.
            within_s: seconds from when it was due in which it must start, if
                it has not.
        """
        within_ms = "" if within_s is None or started else str(round(within_s * 1000))
        return await self._commit(_Item(lease, "back", within_ms, "" if started else "1", ""))

    async def _commit(self, item: _Item) -> Commit:
        pause = _FIRST_PAUSE_S
        long_at = time.monotonic() + self._lease_s
        while True:
            try:
                return Commit(await self._batcher.ask(item))
            except (RedisError, OSError) as error:
                self._log.warning(
                    "commit.again",
                    job_id=item.lease.claim.job_id,
                    error=type(error).__name__,
                    detail=str(error),
                )
                # A lease that is renewed keeps the job from all others: the result is worth it.
                if item.lease.is_over() or (self._hurried and time.monotonic() > long_at):
                    return Commit.GIVEN_UP
                await anyio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _send(self, items: Sequence[_Item]) -> Sequence[int]:
        if all(item.lease.is_over() for item in items):
            # Their locks have expired with them: each batch by itself would find that out, one
            # after the other, from a server that may hang.
            return [Commit.GIVEN_UP] * len(items)
        words = [word for item in items for word in item.words()]
        return cast(
            "Sequence[int]", await self._script.run(self._redis, *self._keep.words(), *words)
        )
