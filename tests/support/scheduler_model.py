"""A small model of the scheduler."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LEASE_MS = 60_000
_FIRST_ESTIMATE_MS = 100


@dataclass
class Held:
    tenant: str
    job_id: str
    token: str
    claimed: int
    charged: int


@dataclass
class Tenant:
    name: str
    weight: float
    cap: int
    vt: int = 0
    estimate: int = _FIRST_ESTIMATE_MS
    queue: dict[str, float] = field(default_factory=dict)
    running: dict[str, Held] = field(default_factory=dict)
    ready: bool = False

    def due(self, now: float) -> list[str]:
        waiting = [(score, job_id) for job_id, score in self.queue.items() if score <= now]
        return [job_id for _, job_id in sorted(waiting)]

    def cost(self, ms: float) -> int:
        return math.floor(ms * 1000 / self.weight)


class Model:
    """Who is served next, and what it costs: fair by weighted virtual time."""

    def __init__(self, tenants: list[Tenant]) -> None:
        self.tenants = {tenant.name: tenant for tenant in tenants}
        self.clock = 0

    def entry(self) -> int:
        ready = [tenant.vt for tenant in self.tenants.values() if tenant.ready]
        return min([self.clock, *ready])

    def arm(self, tenant: Tenant, now: float) -> None:
        free = not tenant.cap or len(tenant.running) < tenant.cap
        if not tenant.due(now) or not free:
            tenant.ready = False
        elif not tenant.ready:
            tenant.vt = max(tenant.vt, self.entry())
            tenant.ready = True

    def claim(self, most: int, now: float) -> list[tuple[str, str]]:
        taken: list[tuple[str, str]] = []
        while len(taken) < most:
            ready = [(tenant.vt, name) for name, tenant in self.tenants.items() if tenant.ready]
            if not ready:
                break
            self.clock, name = min(ready)
            tenant = self.tenants[name]
            job_id = tenant.due(now)[0]
            tenant.queue[job_id] = now + LEASE_MS
            tenant.running[job_id] = Held(name, job_id, "", int(now), tenant.estimate)
            tenant.vt += tenant.cost(tenant.estimate)
            taken.append((name, job_id))
            self.arm(tenant, now)
        return taken
