"""Serves the tenants' queues with arq's own worker, one for each tenant."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import cast

import anyio
import anyio.abc
import structlog
from arq.connections import ArqRedis
from arq.worker import Worker, func
from redis.exceptions import RedisError

from corral import codec, keys
from corral.errors import ErrInvalidJob
from corral_worker.executor.supervisor import Supervisor
from corral_worker.queue.arq_function import ArqFunction

_DISCOVER_EVERY_S = 0.5
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_ENDLESS_TRIES = 1_000_000
"""How often a job may be tried is decided in :class:`ArqFunction`, by the job."""
_ANSWER_WITHIN_S = 10.0


class ArqConsumer:
    """Takes jobs from the queues and hands them to the supervisor.

    Serves the tenants it is given, and those that :class:`corral.Client` has
    noted in Redis.

    Args:
        redis: the client with corral's serializers.
        supervisor: runs the attempts.
        tenants: tenants to serve from the start.
        slots: most jobs taken from one queue at one time.
        poll_delay_s: seconds between two looks at a queue.
        keep_result_s: seconds a result stays in Redis.
        lock_s: seconds after which another worker may take a job whose worker
            has died: longer than any job can take.
    """

    def __init__(
        self,
        *,
        redis: ArqRedis,
        supervisor: Supervisor,
        tenants: Iterable[str],
        slots: int,
        poll_delay_s: float,
        keep_result_s: float,
        lock_s: float,
    ) -> None:
        self._redis = redis
        self._supervisor = supervisor
        self._tenants = frozenset(tenants)
        self._slots = slots
        self._poll_delay_s = poll_delay_s
        self._keep_result_s = keep_result_s
        self._lock_s = lock_s
        self._workers: dict[str, Worker] = {}
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Serve until cancelled. An error of Redis makes it wait and try again."""
        async with anyio.create_task_group() as tasks:
            for tenant in sorted(self._tenants):
                self._serve(tenant, tasks)
            while True:
                await self._discover(tasks)
                await anyio.sleep(_DISCOVER_EVERY_S)

    async def drain(self, grace_s: float) -> None:
        """Take no more jobs, and wait for those that run.

        What still runs after ``grace_s`` seconds is stopped; what had not
        started, or may be started again, goes back to its queue. Returns when
        arq has written how each ended.
        """
        for worker in self._workers.values():
            worker.allow_pick_jobs = False
        with anyio.move_on_after(grace_s):
            await self._supervisor.idle()
        self._supervisor.stop_all("shutdown")
        await self._supervisor.idle()
        with anyio.move_on_after(_ANSWER_WITHIN_S):
            for worker in self._workers.values():
                await asyncio.gather(*worker.tasks.values(), return_exceptions=True)
                await self._redis.delete(worker.health_check_key)

    async def _discover(self, tasks: anyio.abc.TaskGroup) -> None:
        try:
            members = await cast("Awaitable[set[bytes]]", self._redis.smembers(keys.TENANTS))
        except RedisError as error:
            self._log.warning("queue.unreachable", error=type(error).__name__)
            return
        for member in sorted(members):
            tenant = member.decode(errors="replace")
            if tenant in self._workers:
                continue
            try:
                keys.check_tenant(tenant)
            except ErrInvalidJob:
                # Anybody with write access to Redis can put anything there.
                self._log.warning("queue.bad_tenant", tenant=tenant[:64])
                continue
            self._serve(tenant, tasks)

    def _serve(self, tenant: str, tasks: anyio.abc.TaskGroup) -> None:
        worker = self._worker(tenant)
        self._workers[tenant] = worker
        tasks.start_soon(self._keep_running, tenant, worker)
        self._log.info("queue.serving", tenant=tenant)

    def _worker(self, tenant: str) -> Worker:
        def aborted(job_id: str) -> bool:
            return job_id in worker.aborting_tasks

        function = ArqFunction(
            self._supervisor, tenant, aborted=aborted, give_back_try=self._give_back_try
        )
        worker = Worker(
            functions=[func(function.execute, name=keys.FUNCTION)],
            queue_name=keys.queue(tenant),
            redis_pool=self._redis,
            handle_signals=False,
            max_jobs=self._slots,
            job_timeout=self._lock_s,
            keep_result=self._keep_result_s,
            poll_delay=self._poll_delay_s,
            max_tries=_ENDLESS_TRIES,
            allow_abort_jobs=True,
            log_results=False,
            job_serializer=codec.serialize,
            job_deserializer=codec.deserialize,
        )
        return worker

    async def _give_back_try(self, job_id: str) -> None:
        await self._redis.decr(keys.retry(job_id))

    async def _keep_running(self, tenant: str, worker: Worker) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            began = anyio.current_time()
            try:
                await worker.async_run()
            except (RedisError, OSError, TimeoutError) as error:
                # arq's worker ends with the first error of Redis (python-arq/arq#386).
                self._log.warning("queue.interrupted", tenant=tenant, error=type(error).__name__)
            if anyio.current_time() - began > _LONGEST_PAUSE_S:
                pause = _FIRST_PAUSE_S
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
