"""``corral demo``."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from support.commands import invoke_now

from corral import ErrDaemonUnavailable, ErrGVisorNotAvailable, ErrSecurityViolation, Policy
from corral_worker.cli import demo
from corral_worker.cli.demo_jobs import SHOWS, Shown
from corral_worker.cli.demo_worker import WorkerFailed, beside_worker
from corral_worker.images.builder import ImageBuilder
from corral_worker.images.recipe import Recipe
from corral_worker.images.store import Image
from corral_worker.settings import Settings


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_the_demo_takes_no_fault_for_an_ending() -> None:
    fault = ErrDaemonUnavailable("gone")
    assert [show.title for show in SHOWS if Shown(show=show, ending=fault).as_expected] == []


def test_the_demos_rejected_job_breaks_just_the_rules_it_names() -> None:
    refused = {
        show.title: Shown(show=show, ending=ErrSecurityViolation(violations)).as_expected
        for show in SHOWS
        if (violations := Policy().check(show.job))
    }
    assert refused == {"asks for root and the host": True}


def test_the_demo_builds_the_images_that_a_host_needs_before_it_looks_at_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CORRAL_IMAGE_DIR", str(tmp_path / "images"))
    built: list[str] = []

    async def build(self: ImageBuilder, recipe: Recipe, *, name: str) -> Image:
        built.append(name)
        return Image(
            name=name,
            digest="sha256:0",
            rootfs=tmp_path,
            size_bytes=1,
            created_at=datetime.now(UTC),
            source=recipe.source,
        )

    async def check(settings: Settings) -> None:
        assert built == ["base", "python"]
        raise ErrGVisorNotAvailable("no runsc")

    monkeypatch.setattr(ImageBuilder, "build", build)
    monkeypatch.setattr(demo, "check_host", check)

    invoked = invoke_now("demo")

    assert invoked.exit_code == 1
    assert invoked.stderr.endswith("Error: gvisor_not_available: no runsc\n")


async def test_a_demo_worker_that_ends_by_itself_shows_its_log() -> None:
    environ = {**os.environ, "CORRAL_SLOTS": "none"}
    with pytest.raises(WorkerFailed, match=r"status 2(?s:.*)CORRAL_SLOTS: slots: Expected int"):
        await beside_worker(anyio.sleep_forever, environ=environ, stop_within_s=5)


async def test_a_demo_worker_is_gone_when_the_demo_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stub = tmp_path / "stub"
    stub.write_text("#!/bin/sh\nexec sleep 1000\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    started: list[int] = []
    really_open = anyio.open_process

    async def remember(*args: object, **kwargs: object) -> object:
        process = await really_open(*args, **kwargs)  # type: ignore[arg-type]
        started.append(process.pid)
        return process

    monkeypatch.setattr(anyio, "open_process", remember)
    with anyio.CancelScope() as scope:

        async def cancel() -> None:
            scope.cancel()
            await anyio.sleep_forever()

        await beside_worker(cancel, environ=os.environ, stop_within_s=5)
    assert scope.cancelled_caught
    assert list(filter(is_running, started)) == []
