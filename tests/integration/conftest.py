"""Real Redis and Valkey servers, corral's and stock arq's clients, and workers of both."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import pytest
from arq.connections import ArqRedis
from arq.worker import Worker, func
from support.serving import Serving, Watched, serving

from corral import (
    ErrSandboxExecutionFailed,
    Job,
    JobCancelled,
    Outcome,
    Policy,
    Result,
    codec,
    keys,
)
from corral.client import REDIS_URL_VARIABLE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a server on Redis and on Valkey."""
    if "redis_server" in metafunc.fixturenames:
        metafunc.parametrize("redis_server", ["redis", "valkey"], indirect=True, scope="session")


@pytest.fixture
async def executor() -> Watched:
    """What the consumers of ``served`` run jobs with."""
    return Watched()


@pytest.fixture
def served(redis_client: ArqRedis, executor: Watched) -> Serving:
    """Starts a consumer: see :func:`support.serving.serving`."""
    return partial(serving, redis_client, executor)


@pytest.fixture
def commands_know_redis(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    """Let the operators' commands find the server."""
    monkeypatch.setenv(REDIS_URL_VARIABLE, redis_url)


@pytest.fixture
def begun() -> anyio.Event:
    """Set once the stock worker has begun a job that waits for ever."""
    return anyio.Event()


@pytest.fixture
async def stock_worker(pool: ArqRedis, begun: anyio.Event) -> AsyncIterator[Worker]:
    """A stock arq worker on the queue of the tenant acme, one job at a time.

    It knows programs of its own, by ``argv[0]``: ``echo``, ``wait`` (for ever),
    ``break`` (a fault) and ``bug`` (an exception of a stranger).
    """

    async def execute(ctx: dict[str, object], job: Job) -> Result:
        Policy().enforce(job)
        match job.argv[0]:
            case "wait":
                begun.set()
                try:
                    await anyio.sleep_forever()
                except asyncio.CancelledError:
                    result = Result(outcome=Outcome.CANCELLED, stdout=b"partial", stdout_bytes=7)
                    raise JobCancelled(result) from None
            case "break":
                raise ErrSandboxExecutionFailed(
                    "the sandbox broke", retry_safety="started", context={"step": "wait"}
                )
            case "bug":
                raise RuntimeError("/root/.ssh is readable")
            case _:
                pass
        output = " ".join(job.argv[1:]).encode()
        return Result(outcome=Outcome.EXITED, exit_code=0, stdout=output, stdout_bytes=len(output))

    worker = Worker(
        functions=[func(execute, name=keys.FUNCTION)],
        queue_name=keys.queue("acme"),
        redis_pool=pool,
        job_serializer=codec.serialize,
        job_deserializer=codec.deserialize,
        allow_abort_jobs=True,
        handle_signals=False,
        max_jobs=1,
        poll_delay=0.01,
    )
    try:
        # If the worker dies, its task group takes the test with it.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.main)
            yield worker
            tasks.cancel_scope.cancel()
    finally:
        for task in worker.tasks.values():
            task.cancel()
        await asyncio.gather(*worker.tasks.values(), return_exceptions=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a server's certificate for 127.0.0.1, of ``ca``, and a stranger's ``other``.

    Each is NAME.pem with NAME.key.
    """
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    def make(name: str, *words: str) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl("req", "-x509", *key, *files, "-days", "1", "-subj", f"/CN={name}", *words)

    authority = ("-addext", "keyUsage=critical,keyCertSign")
    make("ca", *authority)
    make("other", *authority)
    make(
        "server",
        *("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
    )
    return directory
