"""Taking jobs off the tenants' queues."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Sequence
from typing import Final, Literal, cast

import msgspec
from redis.asyncio import Redis

from corral import keys
from corral.job_codec import MAX_PAYLOAD_BYTES
from corral.scripts import Script

What = Literal["run", "cancelled", "dead", "large", "gone"]

_MOST_BYTES_AT_ONCE: Final = 64 * 1024 * 1024
_LONGEST_WAIT_S: Final = 2.0
_SHORTEST_WAIT_S: Final = 0.01


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is this worker's until its lease ends."""

    tenant: str
    job_id: str
    token: str
    """Fences this attempt: no other ever has the same."""
    what: What
    """``run``, or why it is not to be run."""
    starts: int
    """How often its program may have begun before."""
    lost: int
    """How often its lease was lost before."""
    queued_s: float
    """Seconds since it was due, by Redis' clock."""
    payload: bytes
    policy: bytes
    """What the tenant's policy in Redis takes away, as JSON; empty if it has none there."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What one request brought."""

    claims: tuple[Claim, ...]
    asked_at: float
    """Monotonic seconds before the request was sent: the leases began no earlier."""
    next_due_s: float | None
    """Seconds until a tenant is to be looked at again, if any is."""


class Claims:
    """Claims jobs, in one round trip, and waits until there may be some.

    Args:
        redis: where the queues are.
        worker: this worker's name.
        lease_s: seconds a claim holds unless renewed.
        most_lost: lost leases after which a job is given up.
    """

    def __init__(self, redis: Redis, *, worker: str, lease_s: float, most_lost: int) -> None:
        self._redis = redis
        self._worker = worker
        self._lease_ms = round(lease_s * 1000)
        self._most_lost = most_lost
        self._script = Script(__package__, "claim")
        self._nonce = secrets.token_hex(8)

    async def take(self, most: int) -> Batch:
        """Claim up to ``most`` jobs.

        After an error the next call asks for the same batch again: a reply
        that was lost on its way holds no job back.

        Raises:
            RedisError: Redis does not answer.
        """
        asked_at = time.monotonic()
        reply = await self._script.run(
            self._redis,
            self._worker,
            most,
            self._lease_ms,
            self._nonce,
            self._most_lost,
            MAX_PAYLOAD_BYTES,
            _MOST_BYTES_AT_ONCE,
        )
        self._nonce = secrets.token_hex(8)
        _now, due_ms, jobs = cast("tuple[int, int, list[Sequence[bytes]]]", reply)
        return Batch(
            claims=tuple(map(_claim, jobs)),
            asked_at=asked_at,
            next_due_s=None if due_ms < 0 else due_ms / 1000,
        )

    async def wait(self, next_due_s: float | None) -> None:
        """Wait until a hint says that a job can be claimed, or it is time to look.

        Hints are no jobs: one that is lost costs the wait, two seconds at most.

        Raises:
            RedisError: Redis does not answer.
        """
        within = _LONGEST_WAIT_S if next_due_s is None else min(next_due_s, _LONGEST_WAIT_S)
        # Redis counts a timeout of 0 as none at all.
        await cast(
            "Awaitable[object]",
            self._redis.execute_command("BLPOP", keys.WAKE, max(within, _SHORTEST_WAIT_S)),  # type: ignore[no-untyped-call]
        )


def _claim(fields: Sequence[bytes]) -> Claim:
    tenant, job_id, token, what, starts, lost, queued_ms, payload, policy = fields
    return Claim(
        tenant=tenant.decode(errors="surrogateescape"),
        job_id=job_id.decode(errors="surrogateescape"),
        token=token.decode(),
        what=cast("What", what.decode()),
        starts=int(starts),
        lost=int(lost),
        queued_s=int(queued_ms) / 1000,
        payload=payload,
        policy=policy,
    )
