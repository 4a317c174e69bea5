"""The leases a worker holds: renewed while Redis answers, given up in time if it does not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import anyio
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from corral.scripts import Script
from corral_worker.queue.claims import Claim
from corral_worker.queue.trouble import reason
from corral_worker.sandbox.outcome import KillCause
from corral_worker.sandbox.stop import Stop

_RENEWALS = 3
"""In one lease: two may fail before the third matters."""
_MARGIN = 0.2
"""Part of a lease that is kept for killing what runs, before it ends."""
_AGAIN_AFTER_S = 0.1
_LOST = 0
_CANCELLED = 2


class Lease:
    """The right to one attempt, and the attempt's end when it is lost."""

    def __init__(self, claim: Claim, *, safe_until: float, over_at: float) -> None:
        self.claim = claim
        self.safe_until = safe_until
        """Monotonic seconds at which the attempt must be told to end."""
        self.over_at = over_at
        """Monotonic seconds at which no worker has it any more, unless it is renewed."""
        self.lost = False
        self.settling = False
        """Whether its end is being written: then the lease may be gone before that is known."""
        self.stop = Stop()
        """Ends the attempt, also one that is still to begin."""

    def is_over(self) -> bool:
        """Return whether it has ended, by this machine's own clock."""
        return time.monotonic() > self.over_at


class Leases:
    """All leases of this worker.

    Args:
        redis: where the queues are.
        lease_s: seconds a lease holds unless renewed.
    """

    def __init__(self, redis: Redis, *, lease_s: float) -> None:
        self._redis = redis
        self._lease_s = lease_s
        self._safe_s = lease_s * (1 - _MARGIN)
        self._script = Script(__package__, "renew")
        self._held: dict[str, Lease] = {}
        self._log = structlog.get_logger()

    def hold(self, claim: Claim, *, asked_at: float) -> Lease:
        """Keep a claim's lease until it is dropped."""
        now = time.monotonic()
        lease = Lease(claim, safe_until=asked_at + self._safe_s, over_at=now + self._lease_s)
        if now >= asked_at + self._safe_s / 2:
            # The reply took so long that a start would soon be an attempt lost: hand the job back.
            lease.stop.request("shutdown")
        self._held[claim.token] = lease
        return lease

    def drop(self, lease: Lease) -> None:
        """Renew a lease no longer."""
        self._held.pop(lease.claim.token, None)

    def cancel(self, token: str) -> None:
        """Stop the attempt with this token, if it is this worker's and still runs."""
        if lease := self._held.get(token):
            lease.stop.request("cancelled")

    def stop_all(self, cause: KillCause) -> None:
        """Ask every attempt to end."""
        for lease in tuple(self._held.values()):
            lease.stop.request(cause)

    def __len__(self) -> int:
        return len(self._held)

    async def keep(self) -> None:
        """Renew all leases, in one batch, until cancelled."""
        pause = self._lease_s / _RENEWALS
        while True:
            await anyio.sleep(pause)
            pause = self._lease_s / _RENEWALS
            try:
                # A server that hangs is one that does not answer.
                with anyio.fail_after(self._lease_s / _RENEWALS):
                    await self._renew()
            except (RedisError, OSError) as error:  # a TimeoutError is an OSError
                self._log.warning("lease.not_renewed", error=reason(error))
                pause = min(_AGAIN_AFTER_S, pause)

    async def guard(self) -> None:
        """Stop attempts whose leases could not be renewed in time, until cancelled.

        By this machine's own clock, and without asking Redis: no other worker
        can have the job before the sandbox here is dead.
        """
        pause = self._lease_s * _MARGIN / 4
        while True:
            asleep_at = time.monotonic()
            await anyio.sleep(pause)
            now = time.monotonic()
            late_s = now - asleep_at - pause
            if late_s > self._lease_s * _MARGIN:
                # Whoever looks why a lease was lost is to know that it was the machine.
                self._log.warning("worker.stood_still", for_s=round(late_s, 1))
            for lease in tuple(self._held.values()):
                if now >= lease.safe_until and not lease.lost and not lease.settling:
                    lease.lost = True
                    lease.stop.request("shutdown")
                    self._log.warning("lease.given_up", job_id=lease.claim.job_id)

    async def _renew(self) -> None:
        leases = [lease for lease in self._held.values() if not lease.lost]
        if not leases:
            return
        asked_at = time.monotonic()
        words = [
            word
            for lease in leases
            for word in (lease.claim.tenant, lease.claim.job_id, lease.claim.token)
        ]
        reply = await self._script.run(self._redis, round(self._lease_s * 1000), *words)
        over_at = time.monotonic() + self._lease_s
        for lease, answer in zip(leases, cast("Sequence[int]", reply), strict=True):
            if answer == _LOST:
                self._lose(lease)
                continue
            lease.safe_until = asked_at + self._safe_s
            lease.over_at = over_at
            if answer == _CANCELLED:
                lease.stop.request("cancelled")

    def _lose(self, lease: Lease) -> None:
        ours = lease.claim.token in self._held and not lease.settling
        if ours and not lease.lost:
            lease.lost = True
            lease.stop.request("shutdown")
            self._log.warning("lease.lost", job_id=lease.claim.job_id)
