"""A tenant's results as a queue."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from corral import codec, keys
from corral.errors import ErrJobNotFound
from corral.guests import Guest, Guests
from corral.reaching import reaching
from corral.result import Result

_AT_ONCE = 32
_BLOCK_MS = 2000
_TAKE_OVER_AFTER_MS = 60_000

_Entries = list[tuple[bytes, dict[bytes, bytes] | None]]


class FinishedJob:
    """One entry of a results stream. It comes again until it is acknowledged.

    If its stream has been trimmed, or has expired, it does not: see
    :meth:`corral.Client.results`.
    """

    def __init__(
        self, redis: Redis, *, stream: str, group: str, entry: bytes, fields: dict[bytes, bytes]
    ) -> None:
        self._redis = redis
        self._stream = stream
        self._group = group
        self._entry = entry
        self._data = fields.get(b"data", b"")
        self.job_id = fields[b"id"].decode(errors="replace")
        self.outcome = fields.get(b"outcome", b"").decode()
        """The outcome, or the code of the error."""

    async def result(self) -> Result:
        """Return how the job ended.

        Raises:
            CorralError: the job was rejected, or a fault struck.
            ErrJobNotFound: the result was too large for the stream, and has
                expired.
        """
        data = self._data
        if not data:
            async with reaching(self._redis):
                data = await self._redis.get(keys.result(self.job_id)) or b""
        if not data:
            raise ErrJobNotFound(
                f"the result of {self.job_id} has expired", context={"job_id": self.job_id}
            )
        return codec.decode_result(data)

    async def ack(self) -> None:
        """Say that this entry is dealt with: no consumer of the group gets it again."""
        async with reaching(self._redis):
            await cast("Awaitable[int]", self._redis.xack(self._stream, self._group, self._entry))


class ResultsStream:
    """Reads a tenant's results with a consumer group.

    Args:
        redis: where the stream is.
        tenant: whose results.
        group: each group gets every result, each of its consumers a part.
        consumer: this consumer's name within the group; one of its own, as
            long as it is read, if None.
        guests: where that one is noted.
    """

    def __init__(
        self, redis: Redis, *, tenant: str, group: str, consumer: str | None, guests: Guests
    ) -> None:
        self._redis = redis
        self._stream = keys.results(tenant)
        self._group = group
        self._consumer = consumer or secrets.token_hex(8)
        self._guests = None if consumer else guests

    async def entries(self) -> AsyncIterator[FinishedJob]:
        """Yield results for ever: this consumer's unacknowledged ones, then new ones.

        What another consumer of the group has left unacknowledged for a
        minute is taken over.

        Raises:
            ErrDaemonUnavailable: Redis does not answer.
        """
        after = b"0"
        with self._stay():
            while True:
                async with reaching(self._redis):
                    entries = await self._next(after)
                if after != b">":
                    # One's own, from before a restart: until there are no more.
                    after = entries[-1][0] if entries else b">"
                for entry, fields in entries:
                    if fields:
                        yield FinishedJob(
                            self._redis,
                            stream=self._stream,
                            group=self._group,
                            entry=entry,
                            fields=fields,
                        )

    def _stay(self) -> AbstractContextManager[None]:
        if self._guests is None:
            return nullcontext()
        guest = Guest(stream=self._stream, group=self._group, name=self._consumer)
        return self._guests.staying(guest)

    async def _next(self, after: bytes) -> _Entries:
        try:
            if after == b">" and (left := await self._take_over()):
                return left
            reply = await self._redis.xreadgroup(
                self._group,
                self._consumer,
                {self._stream: after},
                count=_AT_ONCE,
                block=_BLOCK_MS,
            )
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            await self._make_group()
            return []
        return cast("_Entries", reply[0][1]) if reply else []

    async def _take_over(self) -> _Entries:
        reply = await self._redis.xautoclaim(
            self._stream, self._group, self._consumer, _TAKE_OVER_AFTER_MS, count=_AT_ONCE
        )
        return cast("_Entries", reply[1])

    async def _make_group(self) -> None:
        try:
            await self._redis.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
