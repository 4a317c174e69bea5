from __future__ import annotations

import json
from pathlib import Path

import pytest

from corral import EffectiveLimits, HostLimits, Job
from corral_worker.process.capture import Spool
from corral_worker.sandbox.bundle import ROOT_DIRECTORY, host_tasks
from corral_worker.sandbox.cgroup import CgroupError, Counters
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.notes import Notes
from corral_worker.sandbox.place import Place

JOB = Job(argv=("true",))
LIMITS = EffectiveLimits()


class Cgroup:
    """One that is never made: it only remembers."""

    runsc_path = "/corral/one"

    def __init__(self) -> None:
        self.limits: HostLimits | None = None
        self.busy = 0
        self.kills = 0

    def create(self, limits: HostLimits) -> HostLimits:
        self.limits = limits
        return limits

    def limit(self, limits: HostLimits) -> HostLimits:
        return limits

    def yield_processor(self) -> None: ...

    def begin(self) -> None: ...

    def counters(self) -> Counters:
        return Counters(cpu_s=0, peak_memory_bytes=0, peak_tasks=None, oom_kills=0)

    def processes(self) -> set[int]:
        return set()

    def kill(self) -> None:
        self.kills += 1

    def remove(self) -> None:
        if self.busy:
            self.busy -= 1
            raise CgroupError("cgroup /corral/one cannot be removed: busy")


@pytest.fixture
def cgroup() -> Cgroup:
    return Cgroup()


@pytest.fixture
def place(tmp_path: Path, cgroup: Cgroup) -> Place:
    mountinfo = f"1 2 0:3 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    host = CgroupHost("/corral", mountinfo=mountinfo, membership="0::/\n")
    made = Place("corral-01234567-000001", tmp_path / "b", host, Spool.new_writers())
    made.cgroup = cgroup
    return made


def test_a_bundle_is_for_the_worker_alone(place: Place) -> None:
    place.make(JOB, LIMITS, Path("/image"))

    config = place.bundle / "config.json"
    assert config.stat().st_mode & 0o777 == 0o600
    assert (place.bundle / ROOT_DIRECTORY).stat().st_mode & 0o777 == 0o700
    assert list((place.bundle / ROOT_DIRECTORY).iterdir()) == []
    assert json.loads(config.read_text())["linux"]["cgroupsPath"] == "/corral/one"


def test_the_cgroup_gets_the_jobs_limits_and_no_swap(place: Place, cgroup: Cgroup) -> None:
    held = place.make(JOB, LIMITS, Path("/image"))

    assert held == cgroup.limits
    assert held == HostLimits(
        memory_bytes=LIMITS.memory_bytes,
        swap_bytes=0,
        cpus=LIMITS.cpus,
        tasks=host_tasks(LIMITS),
    )


def test_an_empty_log_book_knows_nothing(place: Place) -> None:
    book = place.log_book(Notes())

    assert (book.errors, book.panic, book.wait_status, book.run_s) == ((), "", None, 0.0)
    assert not book.begun


def test_an_error_is_told_however_much_of_the_job_it_quotes(place: Place) -> None:
    place.make(JOB, LIMITS, Path("/image"))
    words = "error finding executable in PATH [" + "<" * 2**20
    place.logs.errors.write_text(json.dumps({"msg": words}).replace("<", "\\u003c") + "\n")

    assert place.log_book(Notes()).errors == (words,)


def test_the_log_book_tells_what_was_written(place: Place) -> None:
    place.make(JOB, LIMITS, Path("/image"))
    place.logs.errors.write_bytes(b'{"msg":"broken","level":"error"}\nhalf a li')
    place.logs.panic.write_bytes(b"panic: \xff")
    notes = Notes()
    notes.feed(
        b'{"msg":"boot.go:534] application exiting with exit status 3","level":"info",'
        b'"time":"2030-01-01T00:00:00Z"}\n'
    )

    book = place.log_book(notes)

    assert book.errors == ("broken",)
    assert book.panic == "panic: \ufffd"
    assert (book.wait_status, book.begun) == (768, True)


def test_a_removed_place_is_gone_without_a_kill_and_can_be_removed_again(
    place: Place, cgroup: Cgroup
) -> None:
    place.make(JOB, LIMITS, Path("/image"))

    assert place.remove(within_s=1) == []
    assert place.remove(within_s=1) == []

    assert not place.bundle.exists()
    assert cgroup.kills == 0


def test_a_place_that_was_never_made_can_be_removed(place: Place) -> None:
    assert place.remove(within_s=1) == []


def test_processes_that_are_left_are_killed_and_waited_for(place: Place, cgroup: Cgroup) -> None:
    cgroup.busy = 3

    assert place.remove(within_s=10) == []
    assert cgroup.kills == 3


def test_what_cannot_be_removed_is_told_and_the_rest_is_removed(
    place: Place, cgroup: Cgroup
) -> None:
    place.make(JOB, LIMITS, Path("/image"))
    cgroup.busy = 1_000_000

    assert place.remove(within_s=0.05) == ["cgroup /corral/one cannot be removed: busy"]
    assert not place.bundle.exists()
