"""The scripts against a small model of the scheduler, over random sequences of what can happen.

Time is Redis' own. Where an amount depends on it the model gives a range, and
goes on with what Redis has. Leases are long, or ended on purpose by renewing
them for a millisecond, so that no comparison is a matter of luck.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import cast

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from support.scheduler_model import LEASE_MS, Held, Model, Tenant

from corral import Outcome, Result, keys
from corral.ending_codec import encode_ending
from corral.scripts import Script

TENANTS = ("a", "b", "c")
HOUR_MS = 3_600_000
MOST_LOST = 1000
CANCELLED = encode_ending(Result(outcome=Outcome.CANCELLED))
Reply = tuple[bytes, bytes, list[list[bytes]]]
KEEP = (60_000, 100, 1000)


class Sequences(RuleBasedStateMachine):
    """Submits, claims, renews, expires, finishes, hands back and cancels in any order."""

    client: redis.Redis
    held = Bundle("held")
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.client.flushdb()
        self.scripts = {
            name: self.client.register_script(Script(package, name)._text)
            for package, name in (
                ("corral", "enqueue"),
                ("corral", "cancel"),
                ("corral_worker.queue", "claim"),
                ("corral_worker.queue", "begin"),
                ("corral_worker.queue", "renew"),
                ("corral_worker.queue", "commit"),
            )
        }
        self.count = 0
        self.submitted: set[str] = set()
        self.finished: set[str] = set()
        self.most_charge = 0

    def run(self, name: str, *arguments: str | bytes | int) -> object:
        return self.scripts[name](args=arguments)

    def now(self) -> int:
        seconds, micros = cast("tuple[int, int]", self.client.time())
        return seconds * 1000 + micros // 1000

    @initialize(
        weights=st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3),
        caps=st.tuples(*[st.sampled_from([0, 1, 2])] * 3),
    )
    def begin_anew(self, weights: tuple[float, ...], caps: tuple[int, ...]) -> None:
        tenants = []
        for name, weight, cap in zip(TENANTS, weights, caps, strict=True):
            self.client.hset(
                keys.tenant_settings(name), mapping={"weight": weight, "concurrency": cap}
            )
            tenants.append(Tenant(name, weight, cap))
        self.model = Model(tenants)

    @rule(
        target=jobs,
        name=st.sampled_from(TENANTS),
        count=st.integers(1, 4),
        delay=st.sampled_from([0, 0, 0, HOUR_MS]),
    )
    def submit(self, name: str, count: int, delay: int) -> object:
        tenant = self.model.tenants[name]
        ids = [f"{name}:{self.count + number:06}" for number in range(count)]
        self.count += count
        words = [word for job_id in ids for word in (name, job_id, b"{}", delay, "", "", "", "")]
        before = self.now()
        reply = self.run("enqueue", count, *words)
        after = self.now()
        assert reply == [b"ok", *(job_id.encode() for job_id in ids)]
        for job_id in ids:
            score = cast("float", self.client.zscore(keys.queue(name), job_id))
            assert before <= score - delay <= after
            tenant.queue[job_id] = score
        self.submitted.update(ids)
        self.model.arm(tenant, after)
        return multiple(*ids)

    @rule(target=held, most=st.integers(1, 5), worker=st.sampled_from(["one", "two"]))
    def claim(self, most: int, worker: str) -> object:
        return multiple(*self._claim(most, worker))

    def _claim(self, most: int, worker: str) -> list[Held]:
        self.count += 1
        nonce = f"nonce-{self.count}"
        arguments = (worker, most, LEASE_MS, nonce, MOST_LOST, 1000, 100_000)
        now, _due, jobs = cast(
            "tuple[bytes, bytes, list[list[bytes]]]", self.run("claim", *arguments)
        )
        # The claim looks at tenants whose time has come; in here only ended leases bring it.
        for name in sorted(TENANTS, key=lambda name: self.later.get(name, math.inf)):
            if self.later.get(name, math.inf) <= int(now):
                self.model.arm(self.model.tenants[name], int(now))
        expected = self.model.claim(most, int(now))
        assert expected == [(tenant.decode(), job_id.decode()) for tenant, job_id, *_ in jobs]
        again = cast("Reply", self.run("claim", *arguments))
        if jobs:
            assert [job[:3] for job in jobs] == [job[:3] for job in again[2]], "the same nonce"
        taken = []
        for tenant, job_id, token, *_ in jobs:
            one = self.model.tenants[tenant.decode()].running[job_id.decode()]
            one.token = token.decode()
            self.most_charge = max(
                self.most_charge, self.model.tenants[one.tenant].cost(one.charged)
            )
            taken.append(one)
        return taken

    def _is_live(self, one: Held) -> bool:
        running = self.model.tenants[one.tenant].running
        return one.job_id in running and running[one.job_id].token == one.token

    @rule(one=held)
    def start(self, one: Held) -> None:
        reply = self.run("begin", one.job_id, one.token)
        if not self._is_live(one):
            assert reply == [0]
        else:
            assert reply in ([1], [2])

    @rule(one=held)
    def renew(self, one: Held) -> None:
        live = self._is_live(one)
        reply = self.run("renew", LEASE_MS, one.tenant, one.job_id, one.token)
        assert (reply != [0]) == live
        if live:
            self._adopt_vt(one)

    @rule(one=held)
    def expire(self, one: Held) -> None:
        if not self._is_live(one):
            return
        self.run("renew", 1, one.tenant, one.job_id, one.token)
        self._adopt_vt(one)
        time.sleep(0.005)
        tenant = self.model.tenants[one.tenant]
        del tenant.running[one.job_id]
        tenant.queue[one.job_id] = cast(
            "float", self.client.zscore(keys.queue(one.tenant), one.job_id)
        )

    def _adopt_vt(self, one: Held) -> None:
        # A renewal charges for what went beyond the estimate, and no more.
        tenant = self.model.tenants[one.tenant]
        actual = int(self.client.hget(keys.VIRTUAL_TIME, one.tenant) or 0)  # type: ignore[arg-type]
        charged = int(self.client.hget(keys.state(one.job_id), "charged") or 0)  # type: ignore[arg-type]
        tenant.vt += tenant.cost(charged - one.charged)
        self.model.arm(tenant, self.now())
        assert abs(actual - tenant.vt) <= 1
        one.charged = charged
        tenant.vt = actual
        self.most_charge = max(self.most_charge, tenant.cost(charged))

    @rule(one=consumes(held), final=st.booleans(), forgive=st.booleans())
    def end(self, one: Held, final: bool, forgive: bool) -> None:  # noqa: FBT001 - hypothesis'
        self._end(one, final=final, forgive=forgive)

    def _end(self, one: Held, *, final: bool, forgive: bool) -> None:
        live = self._is_live(one)
        tenant = self.model.tenants[one.tenant]
        cancelled = self.client.hexists(keys.state(one.job_id), "cancel")
        what = ("final", b"{}", "exited", "") if final else ("back", "", "1" if forgive else "", "")
        before = self.now()
        reply = self.run("commit", *KEEP, one.tenant, one.job_id, one.token, *what)
        after = self.now()
        if not live:
            assert reply == [0], "a stale attempt writes nothing"
            return
        if cancelled and not final:
            assert reply == [2]
            self._end(one, final=True, forgive=False)
            return
        assert reply == [1]
        self._settle(tenant, one, before - one.claimed, after - one.claimed)
        del tenant.running[one.job_id]
        if final:
            del tenant.queue[one.job_id]
            self.finished.add(one.job_id)
        else:
            tenant.queue[one.job_id] = cast(
                "float", self.client.zscore(keys.queue(one.tenant), one.job_id)
            )
            assert tenant.queue[one.job_id] <= before, "it is due again at once"
        self.model.arm(tenant, after)
        tenant.vt = int(self.client.hget(keys.VIRTUAL_TIME, one.tenant) or 0)  # type: ignore[arg-type]

    def _settle(self, tenant: Tenant, one: Held, least: int, most: int) -> None:
        actual = int(self.client.hget(keys.VIRTUAL_TIME, tenant.name) or 0)  # type: ignore[arg-type]
        estimate = int(self.client.hget(keys.ESTIMATE, tenant.name) or 0)  # type: ignore[arg-type]
        low = tenant.vt + tenant.cost(least - one.charged)
        high = tenant.vt + tenant.cost(most - one.charged)
        assert actual >= low - 1
        assert actual <= max(high, self.model.entry()) + 1
        assert (
            math.floor(tenant.estimate * 0.8 + least * 0.2 + 0.5)
            <= estimate
            <= math.floor(tenant.estimate * 0.8 + most * 0.2 + 0.5)
        )
        tenant.vt, tenant.estimate = actual, estimate
        # On a machine that stands still a job holds its place for longer than was estimated.
        self.most_charge = max(self.most_charge, tenant.cost(most))

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        name = keys.tenant_of(job_id)
        tenant = self.model.tenants[name]
        reply = self.run("cancel", name, job_id, CANCELLED, *KEEP)
        if job_id in self.finished:
            assert reply == b"finished"
        elif job_id in tenant.running:
            assert reply == b"running"
        else:
            assert reply == b"cancelled"
            del tenant.queue[job_id]
            self.finished.add(job_id)
            self.model.arm(tenant, self.now())

    @rule(name=st.sampled_from(TENANTS))
    def cancel_an_unknown_job(self, name: str) -> None:
        assert self.run("cancel", name, f"{name}:unknown", CANCELLED, *KEEP) == b"unknown"
        assert self.client.keys("*unknown*") == []

    @property
    def later(self) -> dict[str, float]:
        found = cast("list[tuple[bytes, float]]", self._later)
        return {name.decode(): score for name, score in found}

    @invariant()
    def redis_and_the_model_agree(self) -> None:
        self._later = self.client.zrange(keys.LATER, 0, -1, withscores=True)
        ready = cast(
            "list[tuple[bytes, float]]", self.client.zrange(keys.READY, 0, -1, withscores=True)
        )
        if not hasattr(self, "model"):
            return
        assert {name.decode(): score for name, score in ready} == {
            name: tenant.vt for name, tenant in self.model.tenants.items() if tenant.ready
        }
        locks = {}
        now = self.now()
        for name, tenant in self.model.tenants.items():
            queued = cast("list[bytes]", self.client.zrange(keys.queue(name), 0, -1))
            assert {job_id.decode() for job_id in queued} == set(tenant.queue)
            live = cast(
                "list[bytes]", self.client.zrangebyscore(keys.running(name), f"({now}", "+inf")
            )
            assert {job_id.decode() for job_id in live} == set(tenant.running)
            assert not tenant.cap or len(live) <= tenant.cap, "the cap holds"
            for job_id in live:
                locks[job_id] = self.client.get(keys.in_progress(job_id.decode()))
            if tenant.queue:
                waits_until = self.later.get(name)
                assert tenant.ready == (waits_until is None), "in one place"
                if waits_until is not None:
                    ends = [
                        cast("float", self.client.zscore(keys.running(name), job_id))
                        for job_id in tenant.running
                    ]
                    full = tenant.cap and len(tenant.running) >= tenant.cap
                    heads = cast(
                        "list[tuple[bytes, float]]",
                        self.client.zrange(keys.queue(name), 0, 0, withscores=True),
                    )
                    looked_at = min(ends) if full else max(now, heads[0][1])
                    assert waits_until <= looked_at, "nobody is forgotten"
        tokens = list(locks.values())
        assert None not in tokens
        assert len(tokens) == len(set(tokens)), "one live attempt at a job"

    @invariant()
    def no_ready_tenant_lags_by_more_than_what_is_in_flight(self) -> None:
        if not hasattr(self, "model"):
            return
        tenants = self.model.tenants.values()
        ready = [tenant.vt for tenant in tenants if tenant.ready]
        in_flight = sum(len(tenant.running) for tenant in tenants)
        if ready and not in_flight:
            # Nothing is estimated any more: each had at most one service more than another.
            assert max(ready) - min(ready) <= 2 * self.most_charge + self._served_beyond()

    def _served_beyond(self) -> int:
        # What ran longer than its estimate, or was refunded, moves a tenant by that much.
        return 12 * self.most_charge

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self._finish_all()

    def _finish_all(self) -> None:
        for tenant in self.model.tenants.values():
            for one in list(tenant.running.values()):
                self.redis_and_the_model_agree()
                self._end(one, final=True, forgive=False)
        while True:
            self.redis_and_the_model_agree()
            taken = self._claim(5, "last")
            if not taken:
                break
            for one in taken:
                self.redis_and_the_model_agree()
                self._end(one, final=True, forgive=False)
        waiting = {job_id for tenant in self.model.tenants.values() for job_id in tenant.queue}
        now = self.now()
        for tenant in self.model.tenants.values():
            assert all(score > now + LEASE_MS for score in tenant.queue.values()), (
                "only delayed ones"
            )
        assert self.submitted == self.finished | waiting, "no job is forgotten"
        stored = sum(cast("int", self.client.xlen(keys.results(name))) for name in TENANTS)
        assert stored == len(self.finished), "each ended once"


@pytest.fixture
def sync_client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.mark.timeout(300)
def test_the_scripts_do_what_the_model_does(sync_client: redis.Redis) -> None:
    class Machine(Sequences):
        client = sync_client

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            phases=[Phase.explicit, Phase.generate],  # what is shrunk depends on the time
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
