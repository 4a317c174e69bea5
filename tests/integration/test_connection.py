"""Connections to real servers: TLS, servers that are not the primary, settings that lose jobs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from arq.connections import ArqRedis
from structlog.testing import capture_logs
from support.older_redis import older
from support.serving import SOON_S

from corral import Client, ErrDaemonUnavailable, ErrRedisUnsafe, Job
from corral.connection import connect, ping
from corral.following import NotPrimaryError
from corral_worker.queue.durability import check_durability

ECHO = Job(argv=("echo", "hello"))


# TLS.


@contextmanager
def _tls_server(certificates: Path) -> Iterator[str]:
    binary = shutil.which("redis-server")
    assert binary is not None, "redis-server is not installed: make test installs it"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "--port": "0",
        "--tls-port": str(port),
        "--bind": "127.0.0.1",
        "--tls-cert-file": str(certificates / "server.pem"),
        "--tls-key-file": str(certificates / "server.key"),
        "--tls-ca-cert-file": str(certificates / "ca.pem"),
        "--save": "",
        "--dir": str(certificates),
        "--logfile": str(certificates / "redis.log"),
    }
    with subprocess.Popen([binary, *(word for pair in options.items() for word in pair)]) as server:
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    assert server.poll() is None, (certificates / "redis.log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            yield f"rediss://127.0.0.1:{port}/0"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def tls_url(certificates: Path) -> Iterator[str]:
    """URL of a server that asks its clients for certificates too; without options."""
    with _tls_server(certificates) as url:
        yield url


@pytest.fixture
def own(certificates: Path) -> str:
    """The options with which a client shows a certificate."""
    return f"ssl_certfile={certificates / 'server.pem'}&ssl_keyfile={certificates / 'server.key'}"


async def test_a_job_is_queued_over_tls(tls_url: str, own: str, certificates: Path) -> None:
    async with Client(f"{tls_url}?{own}&ssl_ca_certs={certificates / 'ca.pem'}") as client:
        job = await client.submit(ECHO, tenant="acme")
        assert await job.cancel()


@pytest.mark.parametrize("authority", ["?", "?ssl_ca_certs={directory}/other.pem&"])
async def test_a_server_whose_certificate_is_not_trusted_is_refused(
    tls_url: str, own: str, certificates: Path, authority: str
) -> None:
    async with Client(f"{tls_url}{authority.format(directory=certificates)}{own}") as client:
        with pytest.raises(ErrDaemonUnavailable, match="TLS: self-signed certificate in") as caught:
            await client.submit(ECHO)

    assert caught.value.retry_safety == "not_started"


async def test_a_server_whose_certificate_is_for_another_name_is_refused_unless_told_otherwise(
    tls_url: str, own: str, certificates: Path
) -> None:
    url = f"{tls_url.replace('127.0.0.1', 'localhost')}?{own}&ssl_ca_certs={certificates}/ca.pem"

    async with Client(url) as client:
        with pytest.raises(ErrDaemonUnavailable, match="TLS: Hostname mismatch"):
            await client.ping()
    async with Client(f"{url}&ssl_check_hostname=no") as client:
        await client.ping()


async def test_a_server_that_asks_for_a_certificate_refuses_a_client_without(
    tls_url: str, certificates: Path
) -> None:
    async with Client(f"{tls_url}?ssl_ca_certs={certificates / 'ca.pem'}") as client:
        with pytest.raises(ErrDaemonUnavailable):
            await client.ping()


# Servers that are not the primary.


@asynccontextmanager
async def _demoted(redis: ArqRedis, *, stale: str) -> AsyncIterator[None]:
    """Make the server a replica of one that does not exist."""
    await redis.config_set("replica-serve-stale-data", stale)
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        await redis.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]
        await redis.config_set("replica-serve-stale-data", "yes")


@pytest.mark.parametrize("stale", ["yes", "no"], ids=["READONLY", "MASTERDOWN"])
async def test_a_server_that_became_a_replica_is_left_and_nothing_was_queued(
    redis_client: ArqRedis, redis_url: str, stale: str
) -> None:
    async with Client(redis_url) as client:
        await client.ping()
        async with _demoted(redis_client, stale=stale):
            with pytest.raises(ErrDaemonUnavailable, match="NotPrimaryError") as caught:
                await client.submit(ECHO, tenant="acme")
            pool = client._redis.connection_pool
            assert [each.is_connected for each in pool._available_connections] == [False]
        job = await client.submit(ECHO, tenant="acme")
        assert await job.cancel()

    assert caught.value.retry_safety == "not_started"
    assert caught.value.retryable


async def test_a_wait_for_a_job_ends_when_the_server_becomes_a_replica(
    redis_client: ArqRedis, redis_url: str
) -> None:
    waiter = connect(redis_url)
    failed: list[Exception] = []

    async def wait() -> None:
        try:
            await waiter.execute_command("BLPOP", "nothing", 5)  # type: ignore[no-untyped-call]
        except NotPrimaryError as error:
            failed.append(error)

    with anyio.fail_after(4):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            while not (await redis_client.info("clients"))["blocked_clients"]:
                await anyio.sleep(0.01)
            async with _demoted(redis_client, stale="yes"):
                while not failed:
                    await anyio.sleep(0.01)
    await waiter.aclose(close_connection_pool=True)


# Settings that lose jobs.


@pytest.fixture
async def setting(redis_client: ArqRedis) -> AsyncIterator[ArqRedis]:
    """A server whose settings are as before when the test is over."""
    before = await redis_client.config_get("maxmemory*")
    yield redis_client
    for name in ("maxmemory", "maxmemory-policy"):
        await redis_client.config_set(name, before[name])
    await redis_client.config_set("appendonly", "no")


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_redis_that_may_evict_jobs_is_refused_with_the_remedy(
    setting: ArqRedis, policy: str
) -> None:
    await setting.config_set("maxmemory", "100mb")
    await setting.config_set("maxmemory-policy", policy)

    with pytest.raises(
        ErrRedisUnsafe, match=f"{policy}; run CONFIG SET maxmemory-policy noeviction"
    ) as caught:
        await check_durability(setting)

    assert caught.value.code == "redis_unsafe"
    assert caught.value.context == {"maxmemory_policy": policy, "maxmemory": "104857600"}


async def test_eviction_without_a_memory_limit_and_no_append_only_file_are_warned_of(
    setting: ArqRedis,
) -> None:
    await setting.config_set("maxmemory", "0")
    await setting.config_set("maxmemory-policy", "allkeys-lru")

    with capture_logs() as logs:
        await check_durability(setting)

    assert [entry["event"] for entry in logs] == ["redis.may_evict", "redis.not_durable"]


async def test_a_redis_that_keeps_all_on_disk_is_not_warned_of(setting: ArqRedis) -> None:
    await setting.config_set("maxmemory", "100mb")
    await setting.config_set("maxmemory-policy", "noeviction")
    await setting.config_set("appendonly", "yes")

    with capture_logs() as logs:
        await check_durability(setting)

    assert logs == []


async def test_a_redis_that_does_not_tell_its_settings_is_warned_of(
    setting: ArqRedis, redis_url: str
) -> None:
    rules = ("on", "nopass", "~*", "&*", "+@all", "-info", "-config")
    await setting.execute_command("ACL", "SETUSER", "mute", *rules)  # type: ignore[no-untyped-call]
    limited = connect(f"{redis_url}?username=mute&password=any")
    try:
        with capture_logs() as logs:
            await check_durability(limited)
    finally:
        await limited.aclose(close_connection_pool=True)
        await setting.acl_deluser("mute")

    assert [entry["event"] for entry in logs] == ["redis.not_checked"]


async def test_a_worker_does_not_start_on_a_redis_that_may_evict_jobs(
    setting: ArqRedis, redis_url: str
) -> None:
    await setting.config_set("maxmemory", "100mb")
    await setting.config_set("maxmemory-policy", "volatile-lru")

    await _no_worker_starts(redis_url, b"corral: redis_unsafe: Redis may drop jobs")


async def test_a_worker_does_not_start_on_a_redis_without_the_commands_it_takes(
    redis_url: str,
) -> None:
    async with older(redis_url) as url:
        await _no_worker_starts(url, b"install Redis 7.0 or later, or Valkey")


async def _no_worker_starts(redis_url: str, message: bytes) -> None:
    environ = {"PATH": os.environ["PATH"], "CORRAL_REDIS_URL": redis_url}
    environ |= {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}
    with tempfile.TemporaryDirectory(prefix="corral-") as directory:
        environ["CORRAL_STATE_DIR"] = directory
        for options in ([], ["--check"]):
            ended = await anyio.run_process(
                [sys.executable, "-m", "corral_worker", "worker", *options],
                env=environ,
                check=False,
            )
            assert ended.returncode == 1
            assert message in ended.stderr


async def test_what_does_not_answer_is_told_as_such(tmp_path: Path) -> None:
    redis = connect(f"unix://{tmp_path}/absent.sock")

    with pytest.raises(ErrDaemonUnavailable):
        await ping(redis)
    with pytest.raises(ErrDaemonUnavailable):
        await check_durability(redis)
    await redis.aclose(close_connection_pool=True)


# Passwords.


async def test_a_wrong_password_is_told_from_a_server_that_is_not_there(redis_url: str) -> None:
    stranger = connect(f"{redis_url}?username=nobody&password=wrong-secret")
    try:
        with pytest.raises(ErrDaemonUnavailable, match="does not let us in") as caught:
            await ping(stranger)
    finally:
        await stranger.aclose(close_connection_pool=True)

    assert "wrong-secret" not in str(caught.value)
    assert caught.value.retry_safety == "not_started"


# What came that nobody has asked for.


async def test_a_connection_that_its_server_has_closed_is_replaced_before_a_command_is_sent(
    redis_client: ArqRedis, redis_url: str
) -> None:
    redis = connect(redis_url)
    await redis.client_kill_filter(_id=str(await redis_client.client_id()))
    (connection,) = redis_client.connection_pool._available_connections
    with anyio.fail_after(SOON_S):
        while connection._reader is not None and not connection._reader.at_eof():
            await anyio.sleep(0.01)

    assert await redis_client.ping()
    await redis.aclose(close_connection_pool=True)


async def test_looking_whether_something_came_takes_no_turn_of_the_event_loop(
    redis_client: ArqRedis,
) -> None:
    await redis_client.ping()
    (connection,) = redis_client.connection_pool._available_connections

    with pytest.raises(StopIteration) as found:
        connection.can_read_destructive().send(None)  # type: ignore[no-untyped-call]

    assert found.value.value is False
    assert await redis_client.ping()
