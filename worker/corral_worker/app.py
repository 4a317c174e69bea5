"""The composition root: the only place that builds the parts and nests them."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import structlog
from arq.connections import ArqRedis

from corral import ErrGVisorNotAvailable, ErrSandboxCreationFailed, Fault
from corral.connection import connect, ping
from corral_worker.admission.decision import Shortage
from corral_worker.admission.gate import Gate
from corral_worker.admission.watch import AdmissionWatch
from corral_worker.executor.executor import Executor, Runtime
from corral_worker.host import Host, open_host
from corral_worker.queue.commits import Keep
from corral_worker.queue.consumer import Consumer
from corral_worker.queue.durability import check_durability
from corral_worker.service_manager import ServiceManager
from corral_worker.settings import Settings

_DEFAULT_TENANT = "default"
_CLOSE_WITHIN_S = 5.0


async def run_worker(settings: Settings) -> None:
    """Serve the queues until SIGTERM or SIGINT, then drain and return.

    A signal before the worker is ready ends it at once; a second one ends the time that
    a drain gives to running jobs. On cancellation every sandbox is killed and removed
    before this raises.

    Raises:
        ErrGVisorNotAvailable: the host has no usable runsc.
        ErrSandboxCreationFailed: the host cannot hold limits, or is not writable.
        ErrImageNotFound: the host has no image at all.
        ErrDaemonUnavailable: Redis does not answer at the start. Later it may
            come and go.
        ErrRedisUnsafe: Redis is too old, or set so that it may drop jobs.
    """
    log = structlog.get_logger()
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            ready, stopping, hurry = anyio.Event(), anyio.Event(), anyio.Event()

            async def serve() -> None:
                await _serve(settings, ready=ready, stopping=stopping, hurry=hurry)
                tasks.cancel_scope.cancel()

            tasks.start_soon(serve)
            async for number in signals:
                event = "worker.hurrying" if stopping.is_set() else "worker.draining"
                log.info(event, signal=signal.Signals(number).name)
                (hurry if stopping.is_set() else stopping).set()
                if not ready.is_set():
                    tasks.cancel_scope.cancel()
    log.info("worker.stopped")


async def _serve(
    settings: Settings, *, ready: anyio.Event, stopping: anyio.Event, hurry: anyio.Event
) -> None:
    gate, manager = Gate(), ServiceManager()
    async with (
        _redis(settings) as redis,
        open_host(settings, gate) as host,
        _admission(settings, host, manager, gate) as admission,
        anyio.create_task_group() as tasks,
    ):
        consumer = Consumer(
            redis=redis,
            executor=_executor(settings, host, admission),
            tenants={_DEFAULT_TENANT, *settings.tenants},
            slots=settings.slots,
            lease_s=settings.lease_s,
            most_lost=settings.lost_leases,
            keep=Keep(result_s=settings.keep_result_s, stream_entries=settings.stream_entries),
            gate=gate,
        )
        tasks.start_soon(consumer.run)
        tasks.start_soon(host.reaper.run, settings.reap_every_s)
        structlog.get_logger().info(
            "worker.ready",
            worker=consumer.worker,
            slots=settings.slots,
            runsc=host.runsc_version,
            platform=settings.platform,
        )
        manager.status(_status(gate.short_of))
        manager.ready()
        ready.set()
        await stopping.wait()
        manager.stopping()
        await consumer.drain(settings.drain_grace_s, hurry=hurry)
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _admission(
    settings: Settings, host: Host, manager: ServiceManager, gate: Gate
) -> AsyncIterator[AdmissionWatch]:
    """Yield a watch over the gate that has looked once."""
    watch = AdmissionWatch(
        gate,
        settings.admission,
        sample=host.sampler.sample,
        announce=lambda short_of: manager.status(_status(short_of)),
    )
    await watch.look()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        tasks.start_soon(host.trial.run, watch.suspect)
        yield watch
        tasks.cancel_scope.cancel()


def _status(short_of: frozenset[Shortage]) -> str:
    return f"takes no jobs: short of {', '.join(sorted(short_of))}" if short_of else "takes jobs"


def _executor(settings: Settings, host: Host, admission: AdmissionWatch) -> Executor:
    def struck(fault: Fault) -> None:
        admission.suspect()
        if isinstance(fault, ErrSandboxCreationFailed | ErrGVisorNotAvailable):
            host.trial.suspect()

    return Executor(
        policy_of=settings.policy_of,
        images=host.images,
        sandboxes=host.sandboxes,
        runtime=Runtime(runsc_version=host.runsc_version, platform=settings.platform),
        on_fault=struck,
    )


async def check_host(settings: Settings) -> None:
    """Return if a worker could start on this host; leaves nothing behind.

    Raises:
        ErrGVisorNotAvailable: the host has no usable runsc.
        ErrSandboxCreationFailed: the host cannot hold limits, or is not writable.
        ErrImageNotFound: the host has no image at all.
        ErrDaemonUnavailable: Redis does not answer.
        ErrRedisUnsafe: Redis is too old, or set so that it may drop jobs.
    """
    async with _redis(settings), open_host(settings):
        pass


@asynccontextmanager
async def _redis(settings: Settings) -> AsyncIterator[ArqRedis]:
    redis = connect(settings.redis_url.reveal())
    try:
        await ping(redis)
        await check_durability(redis)
        yield redis
    finally:
        with anyio.move_on_after(_CLOSE_WITHIN_S, shield=True):
            await redis.aclose(close_connection_pool=True)
