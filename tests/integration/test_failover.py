"""A primary dies, hangs or steps down; Sentinel names another; nobody is restarted."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from corral import Client, ErrDaemonUnavailable, Job, Outcome, Result, SubmittedJob, keys

pytestmark = pytest.mark.timeout(120)

T = TypeVar("T")

NAME = "queue"
PASSWORD = "of-redis"
SENTINEL_PASSWORD = "of-the-sentinels"
LEASE_S = "1.0"
NULL_WORKER = Path(__file__).parents[1] / "null_worker.py"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def _until(ask: Callable[[], Awaitable[T]], within_s: float = 30) -> T:
    """Ask again and again until the answer is true; a server that is away gives none."""
    with anyio.fail_after(within_s):
        while True:
            with suppress(RedisError, OSError, ErrDaemonUnavailable):
                if answer := await ask():
                    return answer
            await anyio.sleep(0.02)


class Fleet:
    """A primary, a replica and three Sentinels on loopback, with passwords and perhaps TLS."""

    def __init__(self, directory: Path, certificates: Path | None) -> None:
        self._directory = directory
        self._certificates = certificates
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._clients: list[Redis] = []
        self._sentinels: list[Redis] = []
        self._ports: list[int] = []

    async def start(self) -> None:
        first, second = self._ports = [_free_port(), _free_port()]
        redis = ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--save", ""]
        self._start(first, [*redis, "--repl-diskless-sync-delay", "0"])
        await _until(self.at(first).ping)
        self._start(second, [*redis, "--replicaof", f"127.0.0.1 {first}"])
        await _until(self._replica_is_linked)
        ports = [_free_port() for _ in range(3)]
        for port in ports:
            config = self._directory / f"{port}.conf"
            config.write_text(
                f"requirepass {SENTINEL_PASSWORD}\n"
                f"sentinel monitor {NAME} 127.0.0.1 {first} 2\n"
                f"sentinel auth-pass {NAME} {PASSWORD}\n"
                f"sentinel down-after-milliseconds {NAME} 500\n"
                f"sentinel failover-timeout {NAME} 2000\n"
            )
            self._start(port, [], config)
        self._sentinels = [self._client(port, SENTINEL_PASSWORD) for port in ports]
        for sentinel in self._sentinels:
            await _until(lambda sentinel=sentinel: self._knows_all(sentinel))  # type: ignore[misc]

    @property
    def url(self) -> str:
        hosts = ",".join(
            f"127.0.0.1:{each.connection_pool.connection_kwargs['port']}"
            for each in self._sentinels
        )
        tls = f"&tls=yes&ssl_ca_certs={self._certificates}/ca.pem" if self._certificates else ""
        return (
            f"sentinel://:{PASSWORD}@{hosts}/{NAME}?sentinel_password={SENTINEL_PASSWORD}"
            f"&client_name=corral&socket_timeout=3{tls}"
        )

    def at(self, port: int) -> Redis:
        """Return a client of one server, whatever it is."""
        return self._client(port, PASSWORD)

    @property
    def other_port(self) -> int:
        return self._ports[1]

    @property
    def first_port(self) -> int:
        return self._ports[0]

    def send(self, port: int, number: signal.Signals) -> None:
        self._processes[port].send_signal(number)

    async def switch(self) -> None:
        """Ask for a failover though the primary is well."""
        await self._sentinels[0].execute_command("SENTINEL", "FAILOVER", NAME)  # type: ignore[no-untyped-call]

    async def switched(self) -> None:
        """Return once all Sentinels name the other server, and it is the primary."""

        async def named() -> bool:
            role, *_ = await self.at(self.other_port).execute_command("ROLE")  # type: ignore[no-untyped-call]
            return role == b"master" and all(
                [
                    (await each.sentinel_get_master_addr_by_name(NAME))[1] == self.other_port  # type: ignore[no-untyped-call]
                    for each in self._sentinels
                ]
            )

        await _until(named)

    async def stepped_down(self) -> None:
        """Return once the first server is a replica: what it took until then is lost."""

        async def is_replica() -> bool:
            role, *_ = await self.at(self.first_port).execute_command("ROLE")  # type: ignore[no-untyped-call]
            return bool(role == b"slave")

        await _until(is_replica)

    async def corral_connections(self, port: int) -> int:
        clients = await self.at(port).client_list()
        return sum(each["name"] == "corral" for each in clients)

    async def is_left_alone(self, port: int) -> bool:
        return await self.corral_connections(port) == 0

    async def replicated(self) -> None:
        """Return once the replica has what was written so far."""
        first = self.at(self.first_port)
        async with first.client() as one:
            await one.set("mark", 1)
            assert await one.wait(1, 5000) == 1

    async def stop(self) -> None:
        for client in self._clients:
            await client.aclose(close_connection_pool=True)
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def _start(self, port: int, options: list[str], sentinel: Path | None = None) -> None:
        binary = shutil.which("redis-server")
        assert binary is not None, "redis-server is not installed: make test installs it"
        directory = self._directory / str(port)
        directory.mkdir()
        words = ["--bind", "127.0.0.1", "--dir", str(directory), "--logfile", f"{directory}/log"]
        if self._certificates:
            words += ["--port", "0", "--tls-port", str(port), "--tls-replication", "yes"]
            words += ["--tls-auth-clients", "no"]
            words += ["--tls-cert-file", f"{self._certificates}/server.pem"]
            words += ["--tls-key-file", f"{self._certificates}/server.key"]
            words += ["--tls-ca-cert-file", f"{self._certificates}/ca.pem"]
        else:
            words += ["--port", str(port)]
        role = [str(sentinel), "--sentinel"] if sentinel else []
        self._processes[port] = subprocess.Popen([binary, *role, *words, *options])

    def _client(self, port: int, password: str) -> Redis:
        client = Redis(
            host="127.0.0.1",
            port=port,
            password=password,
            socket_timeout=2,
            ssl=self._certificates is not None,
            ssl_ca_certs=f"{self._certificates}/ca.pem" if self._certificates else None,
        )
        self._clients.append(client)
        return client

    async def _replica_is_linked(self) -> bool:
        found = await self.at(self.other_port).info("replication")
        return bool(found["master_link_status"] == "up")

    async def _knows_all(self, sentinel: Redis) -> bool:
        found = await sentinel.sentinel_master(NAME)  # type: ignore[no-untyped-call]
        return (found["flags"], found["num-slaves"], found["num-other-sentinels"]) == (
            "master",
            1,
            2,
        )


@asynccontextmanager
async def _fleet(certificates: Path | None) -> AsyncIterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="corral-") as name:
        fleet = Fleet(Path(name), certificates)
        try:
            await fleet.start()
            yield fleet
        finally:
            await fleet.stop()


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with _fleet(None) as fleet:
        yield fleet


@asynccontextmanager
async def _worker(url: str) -> AsyncIterator[str]:
    """Run a worker process, which is to live as long as the block; gives its name."""
    with subprocess.Popen(  # noqa: ASYNC220 - killed, never waited for in the loop
        [sys.executable, str(NULL_WORKER), url, "4", LEASE_S],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdout is not None
            name = await anyio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
            yield name.decode().strip()
            assert process.poll() is None
        finally:
            process.kill()


async def _submit(client: Client, job: Job) -> SubmittedJob:
    """Submit a job, again if it is certain or possible that it was not queued."""
    return await _until(lambda: client.submit(job, tenant="acme", idempotency_key=str(id(job))))


async def _result(job: SubmittedJob) -> Result:
    return await _until(lambda: job.result(timeout=30))


async def _listens(fleet: Fleet, worker: str, port: int) -> None:
    """Return once the worker is told of cancels by this server."""

    async def subscribed() -> bool:
        ((_, count),) = await fleet.at(port).pubsub_numsub(keys.control(worker))
        return bool(count)

    await _until(subscribed)


@pytest.mark.parametrize("tls", ["plain", "tls"])
async def test_jobs_from_before_and_after_the_death_of_the_primary_come_to_results(
    tls: str, certificates: Path
) -> None:
    async with (
        _fleet(certificates if tls == "tls" else None) as fleet,
        Client(fleet.url) as client,
        _worker(fleet.url) as worker,
    ):
        assert (await (await client.submit(Job(argv=("true",)), tenant="acme")).result()).ok
        # More than fit at one time: some run and others wait when it dies.
        before = await client.submit_many(
            [Job(argv=("sleep", "0.3"), attempts=3)] * 12, tenant="acme"
        )
        await fleet.replicated()
        fleet.send(fleet.first_port, signal.SIGKILL)
        after = [await _submit(client, Job(argv=("true",), attempts=3)) for _ in range(4)]
        results = [await _result(job) for job in (*before, *after)]
        await fleet.switched()
        await _listens(fleet, worker, fleet.other_port)

    assert [result.outcome for result in results] == [Outcome.EXITED] * 16


async def test_nobody_stays_with_a_primary_that_stepped_down(fleet: Fleet) -> None:
    async with Client(fleet.url) as client, _worker(fleet.url) as worker:
        waiting = await client.submit(Job(argv=("sleep", "60"), attempts=3), tenant="acme")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_result, waiting)
            await _until(lambda: fleet.corral_connections(fleet.first_port))
            await fleet.replicated()
            await fleet.switch()
            await fleet.switched()
            await fleet.stepped_down()
            after = await _submit(client, Job(argv=("true",), attempts=3))
            assert (await _result(after)).ok
            await _listens(fleet, worker, fleet.other_port)
            await _until(lambda: fleet.is_left_alone(fleet.first_port))
            assert await waiting.cancel(timeout=20)
        assert (await waiting.result()).outcome is Outcome.CANCELLED


async def test_connections_to_a_primary_that_hangs_are_left_for_the_new_one(fleet: Fleet) -> None:
    async with Client(fleet.url) as client, _worker(fleet.url) as worker:
        assert (await (await client.submit(Job(argv=("true",)), tenant="acme")).result()).ok
        await _listens(fleet, worker, fleet.first_port)
        await fleet.replicated()
        fleet.send(fleet.first_port, signal.SIGSTOP)
        try:
            await fleet.switched()
            after = [await _submit(client, Job(argv=("true",), attempts=3)) for _ in range(4)]
            results = [await _result(job) for job in after]
            # Its connection to the old one was idle: nothing but the switch can end it.
            await _listens(fleet, worker, fleet.other_port)
        finally:
            fleet.send(fleet.first_port, signal.SIGCONT)

    assert [result.outcome for result in results] == [Outcome.EXITED] * 4
