"""What is a leftover and what is not, with directories in place of cgroups."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from structlog.testing import capture_logs

from corral_worker.process.identity import ProcessIdentity
from corral_worker.reaper import reaper as reapers
from corral_worker.reaper import removal
from corral_worker.reaper.claim import Claim, Owner
from corral_worker.reaper.lock import DirectoryLock
from corral_worker.reaper.reaper import Reaper
from corral_worker.reaper.sweep import Deadline, Sweep, Sweeper
from corral_worker.reaper.trace import Counts
from corral_worker.sandbox.cgroup import CgroupError
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.cgroup_v1 import CgroupV1
from corral_worker.sandbox.holdings import Holdings

HIERARCHIES = ("blkio", "cpu", "cpuacct", "devices", "memory", "pids")
A_MINUTE = 60.0


def cgroup_host(place: Path, parent: str = "/corral") -> CgroupHost:
    for name in HIERARCHIES:
        (place / name).mkdir(parents=True, exist_ok=True)
    mounts = (f"1 2 0:3 / {place}/{name} rw - cgroup cgroup rw,{name}\n" for name in HIERARCHIES)
    return CgroupHost(parent, mountinfo="".join(mounts), membership="1:memory:/\n")


@pytest.fixture
def cgroups(tmp_path: Path) -> CgroupHost:
    return cgroup_host(tmp_path / "cg")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def _directories_hold_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CgroupV1, "kill", lambda _: None)


@contextmanager
def living(state_dir: Path, cgroups: CgroupHost) -> Iterator[Claim]:
    claim = Claim.make(state_dir, cgroups)
    try:
        yield claim
    finally:
        claim.release()


def killed(state_dir: Path, cgroups: CgroupHost) -> Claim:
    """Return the claim of a worker whose process was killed: its number is another's now."""
    claim = Claim.make(state_dir, cgroups)
    owner = owner_of(claim)
    earlier = msgspec.structs.replace(owner.process, started=owner.process.started - 1)
    write_owner(claim, msgspec.structs.replace(owner, process=earlier))
    gives_up_its_locks(claim)
    return claim


def gives_up_its_locks(claim: Claim) -> None:
    for lock in claim._locks:
        lock.close()


def owner_of(claim: Claim) -> Owner:
    return msgspec.json.decode((claim.directory / "owner").read_bytes(), type=Owner)


def write_owner(claim: Claim, owner: Owner) -> None:
    (claim.directory / "owner").write_bytes(msgspec.json.encode(owner))


def furnish(claim: Claim, cgroups: CgroupHost, number: int = 1) -> str:
    """Leave all of a sandbox but its processes, and return its id."""
    sandbox = f"corral-{claim.worker}-{number:06x}"
    for name in (f"{sandbox}_sandbox:{sandbox}.state", f"runsc-{sandbox}.sock"):
        (claim.runsc_root / name).touch()
    (claim.runs / sandbox / "rootfs").mkdir(parents=True)
    (claim.runs / sandbox / "config.json").write_text("TOKEN=secret")
    for name in HIERARCHIES:
        (cgroups._hierarchies[name] / cgroups.parent.lstrip("/") / sandbox).mkdir(parents=True)
    return sandbox


OF_ONE_SANDBOX = Counts(cgroup=1, state_file=2, bundle=1)
OF_ITS_WORKER = Counts(directory=1)


def traces(claim: Claim, cgroups: CgroupHost) -> list[str]:
    """Return all that is left of a worker."""
    places = [claim.directory.parent, *(m.parent for m in cgroups._hierarchies.values())]
    return [str(path) for place in places for path in place.rglob(f"*{claim.worker}*")]


def sweep(state_dir: Path, cgroups: CgroupHost) -> Sweep:
    return Sweeper(state_dir=state_dir, cgroups=cgroups, own=None).sweep(
        frozenset(), Deadline(A_MINUTE)
    )


def test_it_says_who_made_it(state_dir: Path, cgroups: CgroupHost) -> None:
    with living(state_dir, cgroups) as claim:
        owner = owner_of(claim)

        assert owner.is_alive
        assert owner.process == ProcessIdentity.of(os.getpid())
        assert owner.cgroup_parent == "/corral"
        assert claim.directory == state_dir / f"w-{claim.worker}"


def test_nobody_else_can_look_into_it(state_dir: Path, cgroups: CgroupHost) -> None:
    with living(state_dir, cgroups) as claim:
        made = (state_dir, claim.directory, claim.runsc_root, claim.runs)
        assert {path.stat().st_mode & 0o777 for path in made} == {0o700}
        assert (claim.directory / "owner").stat().st_mode & 0o777 == 0o600


def test_each_has_a_mark_of_its_own(state_dir: Path, cgroups: CgroupHost) -> None:
    with living(state_dir, cgroups) as one, living(state_dir, cgroups) as two:
        assert one.worker != two.worker


def test_nothing_is_left_of_one_that_was_released(state_dir: Path, cgroups: CgroupHost) -> None:
    with living(state_dir, cgroups) as claim:
        (claim.runs / "corral-x").mkdir()

    assert traces(claim, cgroups) == []
    assert cgroups.names() == set()


def test_a_sandbox_that_outlives_its_worker_is_found_by_the_next(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    with living(state_dir, cgroups) as claim:
        sandbox = furnish(claim, cgroups)

    assert cgroups.names() == {sandbox, f"corral-{claim.worker}"}
    assert sweep(state_dir, cgroups).dead == Counts(cgroup=1)
    assert traces(claim, cgroups) == []


def test_a_reaper_that_comes_between_making_and_locking_does_no_harm(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DirectoryLock.take
    swept: list[Path] = []

    def take(path: Path, *, shared: bool = False) -> DirectoryLock:
        if len(swept) < 2:
            swept.append(path)
            monkeypatch.setattr(DirectoryLock, "take", real)
            sweep(state_dir, cgroups)
            monkeypatch.setattr(DirectoryLock, "take", take)
        return real(path, shared=shared)

    monkeypatch.setattr(DirectoryLock, "take", take)
    with living(state_dir, cgroups) as claim:
        assert claim.runs.is_dir()
        assert cgroups.beacon(claim.worker).is_dir()

    assert len(swept) == 2
    assert list(state_dir.iterdir()) == []
    assert cgroups.names() == set()


def test_a_directory_that_cannot_be_made_leaves_no_cgroup(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    state_dir.mkdir()
    state_dir.chmod(0o500)
    if os.geteuid() == 0:
        state_dir.rmdir()
        state_dir.touch()

    with pytest.raises(OSError, match="state"):
        Claim.make(state_dir, cgroups)
    assert cgroups.names() == set()


def test_a_mark_that_is_taken_is_its_owners(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: "01234567")
    begun = state_dir / "w-01234567"
    begun.mkdir(parents=True)

    with pytest.raises(FileExistsError):
        Claim.make(state_dir, cgroups)
    assert begun.exists()
    assert cgroups.names() == set()
    begun.rmdir()
    with living(state_dir, cgroups) as claim, pytest.raises(CgroupError):
        Claim.make(state_dir, cgroups)
    assert not claim.directory.exists()


def test_an_owner_that_cannot_be_noted_leaves_nothing(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Claim.make(state_dir, cgroups)

    assert list(state_dir.iterdir()) == []
    assert cgroups.names() == set()


def test_all_that_one_left_is_removed_and_counted_by_kind(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    dead = killed(state_dir, cgroups)
    furnish(dead, cgroups, 1)
    furnish(dead, cgroups, 2)

    found = sweep(state_dir, cgroups)

    assert found.dead == OF_ONE_SANDBOX + OF_ONE_SANDBOX + OF_ITS_WORKER
    assert (found.left, found.strays, found.complete) == ((), (), True)
    assert traces(dead, cgroups) == []


@pytest.mark.parametrize("hierarchy", HIERARCHIES)
def test_a_cgroup_is_found_in_whatever_hierarchy_it_is_left(
    state_dir: Path, cgroups: CgroupHost, hierarchy: str
) -> None:
    dead = killed(state_dir, cgroups)
    left = cgroups._hierarchies[hierarchy] / f"corral/corral-{dead.worker}-000007"
    left.mkdir(parents=True)

    assert sweep(state_dir, cgroups).dead == Counts(cgroup=1, directory=1)
    assert not left.exists()


def test_its_cgroups_are_known_without_its_directory(tmp_path: Path, cgroups: CgroupHost) -> None:
    dead = killed(tmp_path / "elsewhere", cgroups)
    furnish(dead, cgroups)

    assert sweep(tmp_path / "here", cgroups).dead == Counts(cgroup=1)
    assert cgroups.names() == set()


def test_its_directory_tells_under_which_other_parent_its_cgroups_are(
    tmp_path: Path, state_dir: Path, cgroups: CgroupHost
) -> None:
    before = cgroup_host(tmp_path / "cg", "/before/it/was/renamed")
    dead = killed(state_dir, before)
    furnish(dead, before)

    assert sweep(state_dir, cgroups).dead == OF_ONE_SANDBOX + OF_ITS_WORKER
    assert before.names() == set()


def test_after_a_boot_no_process_is_the_one_it_looks_like(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    dead = killed(state_dir, cgroups)
    like_this_one = ProcessIdentity.of(os.getpid())
    assert like_this_one is not None
    owner = owner_of(dead)
    write_owner(dead, msgspec.structs.replace(owner, boot_id="before", process=like_this_one))

    assert sweep(state_dir, cgroups).dead == OF_ITS_WORKER


@pytest.mark.parametrize("made", [(), ("owner",)])
def test_a_directory_that_was_only_begun_is_removed(
    state_dir: Path, cgroups: CgroupHost, made: tuple[str, ...]
) -> None:
    begun = state_dir / "w-01234567"
    begun.mkdir(parents=True, mode=0o700)
    for name in made:
        (begun / name).touch()

    assert sweep(state_dir, cgroups).dead == OF_ITS_WORKER
    assert not begun.exists()


def test_links_in_its_directory_are_removed_and_not_followed(
    tmp_path: Path, state_dir: Path, cgroups: CgroupHost
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    dead = killed(state_dir, cgroups)
    for place in (dead.runs, dead.runsc_root, dead.directory):
        (place / "link").symlink_to(precious)
    (dead.runs / "corral-x").mkdir()
    (dead.runs / "corral-x" / "rootfs").symlink_to(precious)

    sweep(state_dir, cgroups)

    assert not dead.directory.exists()
    assert (precious / "file").exists()


def test_parts_of_its_directory_that_are_links_are_not_followed(
    tmp_path: Path, state_dir: Path, cgroups: CgroupHost
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    dead = killed(state_dir, cgroups)
    dead.runs.rmdir()
    dead.runs.symlink_to(precious)

    assert sweep(state_dir, cgroups).dead == OF_ITS_WORKER
    assert (precious / "file").exists()


def test_what_is_not_named_after_a_worker_is_not_looked_at(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    others = ("images", "w-", "w-0123456", "w-012345678", "w-XXXXXXXX", "x-01234567")
    for name in others:
        (state_dir / name).mkdir(parents=True)
    for name in ("corral-test-1", "corral-0123", "system.slice"):
        (cgroups._hierarchies["memory"] / "corral" / name).mkdir(parents=True)

    assert sweep(state_dir, cgroups) == Sweep()
    assert sorted(path.name for path in state_dir.iterdir()) == sorted(others)


@pytest.mark.parametrize("same_directory", [True, False])
@pytest.mark.parametrize("same_parent", [True, False])
def test_one_that_lives_is_not_touched(
    tmp_path: Path, cgroups: CgroupHost, *, same_directory: bool, same_parent: bool
) -> None:
    theirs = cgroups if same_parent else cgroup_host(tmp_path / "cg", "/theirs")
    place = tmp_path / ("state" if same_directory else "elsewhere")
    with living(place, theirs) as claim:
        furnish(claim, theirs)
        before = traces(claim, theirs)

        assert sweep(tmp_path / "state", cgroups) == Sweep()
        assert traces(claim, theirs) == before


def test_one_lock_of_two_is_enough_to_live(state_dir: Path, cgroups: CgroupHost) -> None:
    for lost in (0, 1):
        claim = Claim.make(state_dir, cgroups)
        furnish(claim, cgroups)
        claim._locks[lost].close()

        sweep(state_dir, cgroups)

        assert traces(claim, cgroups) != []
        claim._locks[1 - lost].close()
        owner = owner_of(claim)
        write_owner(claim, msgspec.structs.replace(owner, boot_id="before"))
        sweep(state_dir, cgroups)
        assert traces(claim, cgroups) == []


def reason(state_dir: Path, cgroups: CgroupHost) -> str:
    found = sweep(state_dir, cgroups)
    assert found.removed == Counts()
    (doubt,) = found.left
    return doubt.reason


def test_a_process_that_runs_without_its_lock(state_dir: Path, cgroups: CgroupHost) -> None:
    claim = Claim.make(state_dir, cgroups)
    furnish(claim, cgroups)
    gives_up_its_locks(claim)

    assert f"its process {os.getpid()} runs" in reason(state_dir, cgroups)


def test_a_link_in_place_of_a_directory(
    tmp_path: Path, state_dir: Path, cgroups: CgroupHost
) -> None:
    (tmp_path / "precious" / "b" / "file").mkdir(parents=True)
    state_dir.mkdir()
    (state_dir / "w-01234567").symlink_to(tmp_path / "precious")

    assert "is not a worker's" in reason(state_dir, cgroups)
    assert (tmp_path / "precious" / "b" / "file").exists()


def test_a_file_in_place_of_a_directory(state_dir: Path, cgroups: CgroupHost) -> None:
    state_dir.mkdir()
    (state_dir / "w-01234567").touch()

    assert "is not a worker's" in reason(state_dir, cgroups)


def test_a_file_system_without_flock(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_: int, __: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    dead = killed(state_dir, cgroups)
    monkeypatch.setattr(fcntl, "flock", flock)

    assert "cannot be locked by flock(2)" in reason(state_dir, cgroups)
    assert dead.directory.exists()
    with pytest.raises(OSError, match=r"cannot be locked by flock\(2\)") as raised:
        Claim.make(state_dir, cgroups)
    assert raised.value.filename
    assert cgroups.names() == {f"corral-{dead.worker}"}


def test_a_directory_that_others_may_write_to(state_dir: Path, cgroups: CgroupHost) -> None:
    killed(state_dir, cgroups).directory.chmod(0o777)

    assert "another user" in reason(state_dir, cgroups)


def test_a_directory_of_another_user(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(state_dir, cgroups)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    assert "another user" in reason(state_dir, cgroups)


OWNER_BELOW = (
    b'{"process":{"pid":1,"started":1},"boot_id":"x","cgroup_parent":"%s",'
    b'"created_at":"2030-01-01T00:00:00Z"}'
)


@pytest.mark.parametrize(
    "owner",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"process":{"pid":1,"started":1}}',
        OWNER_BELOW % b"/../..",
        OWNER_BELOW % b"delegated",
        OWNER_BELOW % b"/corral" + b"x",
        None,
    ],
)
def test_a_directory_with_content_that_does_not_say_whose_it_is(
    state_dir: Path, cgroups: CgroupHost, owner: bytes | None
) -> None:
    dead = killed(state_dir, cgroups)
    (dead.directory / "owner").unlink()
    if owner is not None:
        (dead.directory / "owner").write_bytes(owner)

    assert reason(state_dir, cgroups) == "does not say who made it"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/")])
def test_an_owner_that_is_no_file(state_dir: Path, cgroups: CgroupHost, make: object) -> None:
    dead = killed(state_dir, cgroups)
    (dead.directory / "owner").unlink()
    assert callable(make)
    make(dead.directory / "owner")

    assert reason(state_dir, cgroups) == "does not say who made it"


def test_cgroups_of_a_worker_of_which_nothing_else_is_known(
    tmp_path: Path, cgroups: CgroupHost
) -> None:
    dead = killed(tmp_path / "elsewhere", cgroups)
    furnish(dead, cgroups)
    cgroups.beacon(dead.worker).rmdir()

    assert "nothing says whether" in reason(tmp_path / "here", cgroups)
    assert cgroups.names() != set()


# --- processes ---------------------------------------------------------------------------------


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process that has some words among its arguments."""
    with ExitStack() as stack:

        def started(*words: str) -> subprocess.Popen[bytes]:
            program = "import signal; print(flush=True); signal.pause()"
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            return process

        yield started


Start = Callable[..., subprocess.Popen[bytes]]


def test_processes_that_work_with_a_dead_workers_state_are_killed(
    tmp_path: Path, state_dir: Path, cgroups: CgroupHost, start: Start
) -> None:
    dead = killed(state_dir, cgroups)
    with living(tmp_path / "other", cgroups) as lives:
        theirs = [
            start(f"--root={dead.runsc_root}", "list"),
            start("--log=x", f"--root={dead.runsc_root}", "run", f"corral-{dead.worker}-000001"),
        ]
        others = [
            start(f"--root={lives.runsc_root}", "run", f"corral-{lives.worker}-000001"),
            start("run", f"corral-{dead.worker}-000001"),
            start(f"--root={dead.directory}"),
            start(f"--root={dead.runsc_root}/x"),
            start(f"x--root={dead.runsc_root}"),
        ]

        assert sweep(state_dir, cgroups).dead == Counts(process=2, directory=1)

        assert [process.wait() for process in theirs] == [-9, -9]
        assert [process.poll() for process in others] == [None] * len(others)


def test_a_process_older_than_the_worker_was_not_the_workers(
    state_dir: Path, cgroups: CgroupHost, start: Start
) -> None:
    dead = killed(state_dir, cgroups)
    older = start(f"--root={dead.runsc_root}")
    owner = owner_of(dead)
    later = msgspec.structs.replace(owner.process, started=2**62)
    write_owner(dead, msgspec.structs.replace(owner, process=later))

    assert sweep(state_dir, cgroups).dead == OF_ITS_WORKER
    assert older.poll() is None


# --- this worker's own -------------------------------------------------------------------------


@contextmanager
def sweeping(state_dir: Path, cgroups: CgroupHost) -> Iterator[tuple[Claim, Callable[..., Sweep]]]:
    """Give a worker, and what sweeps as part of it while it holds the sandboxes it is told."""
    with living(state_dir, cgroups) as claim:
        sweeper = Sweeper(state_dir=state_dir, cgroups=cgroups, own=(claim.worker, claim.directory))
        yield claim, lambda *held: sweeper.sweep(frozenset(held), Deadline(A_MINUTE))


def test_what_is_not_held_is_removed_when_it_is_seen_again(
    state_dir: Path, cgroups: CgroupHost, start: Start
) -> None:
    with sweeping(state_dir, cgroups) as (claim, swept):
        sandbox = furnish(claim, cgroups)
        process = start(f"--root={claim.runsc_root}", "run", sandbox)

        assert swept() == Sweep()
        second = swept()

        assert process.wait() == -9
        assert second.dead == Counts()
        assert second.removed == OF_ONE_SANDBOX + Counts(process=1)
        assert {stray.sandbox for stray in second.strays} == {sandbox}
        assert swept() == Sweep()
        assert list(claim.runs.iterdir()) == list(claim.runsc_root.iterdir()) == []


def test_what_is_held_is_never_touched(state_dir: Path, cgroups: CgroupHost, start: Start) -> None:
    with sweeping(state_dir, cgroups) as (claim, swept):
        held, other = furnish(claim, cgroups, 1), furnish(claim, cgroups, 2)
        process = start(f"--root={claim.runsc_root}", "run", held)
        unnamed = start(f"--root={claim.runsc_root}", "--version")

        for _ in range(3):
            swept(held)

        assert (process.poll(), unnamed.poll()) == (None, None)
        assert cgroups.names() == {held, f"corral-{claim.worker}"}
        assert [path.name for path in claim.runs.iterdir()] == [held]
        assert other not in str(traces(claim, cgroups))
        swept()  # its end came between two looks
        assert held in cgroups.names()
        swept(held)
        swept()
        assert held in cgroups.names()


def test_what_is_seen_twice_with_a_look_at_nothing_in_between_is_young_again(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    with sweeping(state_dir, cgroups) as (claim, swept):
        (claim.runs / f"corral-{claim.worker}-000001").mkdir()
        swept()
        (claim.runs / f"corral-{claim.worker}-000001").rmdir()
        swept()
        (claim.runs / f"corral-{claim.worker}-000001").mkdir()

        assert swept() == Sweep()


def test_its_cgroups_are_removed_even_if_somebody_took_its_directory(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    with sweeping(state_dir, cgroups) as (claim, swept):
        furnish(claim, cgroups)
        shutil.rmtree(claim.directory)
        swept()

        assert swept().removed == Counts(cgroup=1)


def test_files_in_its_directory_that_no_sandbox_has_are_left(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    with sweeping(state_dir, cgroups) as (claim, swept):
        (claim.runsc_root / "something-of-runsc").touch()

        assert [swept(), swept(), swept()] == [Sweep()] * 3
        assert (claim.runsc_root / "something-of-runsc").exists()


# --- the sweep as a whole ----------------------------------------------------------------------


def test_one_thing_that_cannot_be_removed_does_not_keep_the_others(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "_DIES_WITHIN_S", 0.02)
    dead = killed(state_dir, cgroups)
    busy, free = furnish(dead, cgroups, 1), furnish(dead, cgroups, 2)
    (cgroups._hierarchies["memory"] / "corral" / busy / "held").touch()

    found = sweep(state_dir, cgroups)

    assert found.dead == msgspec.structs.replace(
        OF_ONE_SANDBOX + OF_ONE_SANDBOX + OF_ITS_WORKER, cgroup=1
    )
    assert [doubt.name for doubt in found.left] == [f"/corral/{busy}"]
    assert cgroups.names() == {busy, f"corral-{dead.worker}"}
    (cgroups._hierarchies["memory"] / "corral" / busy / "held").unlink()
    assert sweep(state_dir, cgroups).dead == Counts(cgroup=1)
    assert cgroups.names() == set()
    assert free not in str(traces(dead, cgroups))


def test_a_survey_tells_what_a_sweep_would_remove_and_removes_nothing(
    state_dir: Path, cgroups: CgroupHost, start: Start
) -> None:
    dead = killed(state_dir, cgroups)
    furnish(dead, cgroups)
    process = start(f"--root={dead.runsc_root}")
    with living(state_dir, cgroups) as claim:
        stray = furnish(claim, cgroups)
        held = furnish(claim, cgroups, 2)
        sweeper = Sweeper(state_dir=state_dir, cgroups=cgroups, own=(claim.worker, claim.directory))

        surveys = [sweeper.survey(frozenset({held}), Deadline(A_MINUTE)) for _ in range(3)]

        assert surveys[0] == surveys[1] == surveys[2]
        kinds = Counts.of(*(trace.kind for trace in surveys[0].dead))
        assert kinds == OF_ONE_SANDBOX + OF_ITS_WORKER + Counts(process=1)
        assert {trace.sandbox for trace in surveys[0].strays} == {stray}
        assert process.poll() is None
        assert sweeper.sweep(frozenset({held}), Deadline(A_MINUTE)).dead == kinds


def test_without_time_nothing_is_removed_and_that_is_told(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    dead = killed(state_dir, cgroups)
    sweeper = Sweeper(state_dir=state_dir, cgroups=cgroups, own=None)

    assert sweeper.sweep(frozenset(), Deadline(0)) == Sweep(complete=False)
    assert dead.directory.exists()


def test_of_two_reapers_one_removes_and_counts(state_dir: Path, cgroups: CgroupHost) -> None:
    for number in range(8):
        furnish(killed(state_dir, cgroups), cgroups, number)
    found: list[Sweep] = []
    begin = threading.Barrier(2)

    def reaps() -> None:
        begin.wait(timeout=30)
        found.append(sweep(state_dir, cgroups))

    threads = [threading.Thread(target=reaps) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # What one had locked at that moment, the other took for alive.
    found.append(sweep(state_dir, cgroups))

    total = sum((each.dead for each in found), Counts())
    assert total == Counts(cgroup=8, state_file=16, bundle=8, directory=8)
    assert [each.left for each in found] == [(), (), ()]


# --- the reaper --------------------------------------------------------------------------------


async def test_it_logs_and_counts_what_dead_workers_left(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    furnish(killed(state_dir, cgroups), cgroups)
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)

    with capture_logs() as logs:
        await reaper.reap()
        furnish(killed(state_dir, cgroups), cgroups)
        await reaper.reap()
        await reaper.reap()

    assert [entry["event"] for entry in logs] == ["reaper.cleaned_up"] * 2
    assert logs[0]["cgroup"] == logs[0]["bundle"] == logs[0]["directory"] == 1
    assert "mount" not in logs[0]
    both = OF_ONE_SANDBOX + OF_ITS_WORKER
    assert reaper.removed == both + both


async def test_a_leftover_of_its_own_worker_is_an_error(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    with living(state_dir, cgroups) as claim:
        holdings = Holdings(claim.worker)
        reaper = Reaper(state_dir=state_dir, cgroups=cgroups, own=(holdings, claim.directory))
        with holdings.hold() as held, capture_logs() as logs:
            (claim.runs / held).mkdir()
            for _ in range(3):
                await reaper.reap()
        assert logs == []

        with capture_logs() as logs:
            await reaper.reap()
            assert (claim.runs / held).exists()
            await reaper.reap()
        assert not (claim.runs / held).exists()
        assert [(entry["event"], entry["log_level"]) for entry in logs] == [
            ("reaper.stray", "error")
        ]
        assert (logs[0]["kind"], logs[0]["sandbox"]) == ("bundle", held)


async def test_what_stays_is_told_once_as_long_as_its_reason_stays(
    state_dir: Path, cgroups: CgroupHost
) -> None:
    dead = killed(state_dir, cgroups)
    dead.directory.chmod(0o777)
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)

    with capture_logs() as logs:
        for _ in range(3):
            await reaper.reap()
        dead.directory.chmod(0o700)
        (dead.directory / "owner").unlink()
        for _ in range(3):
            await reaper.reap()

    assert [entry["reason"] for entry in logs] == [
        "another user made it, or may write to it",
        "does not say who made it",
    ]


async def test_that_time_is_short_is_told_once(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)

    with capture_logs() as logs:
        for within_s in (0, 0, A_MINUTE, 0):
            monkeypatch.setattr(reapers, "_SWEEP_WITHIN_S", within_s)
            await reaper.reap()

    assert [entry["event"] for entry in logs] == ["reaper.out_of_time"] * 2


async def test_nothing_that_goes_wrong_gets_out(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> Sweep:
        raise ZeroDivisionError

    monkeypatch.setattr(Sweeper, "sweep", breaks)
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)

    with capture_logs() as logs:
        assert await reaper.reap() == Sweep(complete=False)

    assert logs[0]["event"] == "reaper.failed"


async def test_a_file_system_that_does_not_answer_is_not_waited_for(
    state_dir: Path, cgroups: CgroupHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    calls: list[Deadline] = []

    def hangs(_: Sweeper, __: frozenset[str], deadline: Deadline) -> Sweep:
        calls.append(deadline)
        answers.wait(A_MINUTE)
        return Sweep()

    monkeypatch.setattr(Sweeper, "_sweep", hangs)
    monkeypatch.setattr(reapers, "_SWEEP_WITHIN_S", 0.1)
    monkeypatch.setattr(reapers, "_ANSWERS_WITHIN_S", 0.1)
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)
    try:
        first = await reaper.reap()
        second = await reaper.reap()
        with pytest.raises(TimeoutError):
            await reaper.survey()
    finally:
        answers.set()

    assert first == second == Sweep(complete=False)
    # The second did not even begin: threads that hang are not to pile up.
    assert [deadline.is_over for deadline in calls] == [True]


async def test_it_comes_round_until_it_is_cancelled(state_dir: Path, cgroups: CgroupHost) -> None:
    reaper = Reaper(state_dir=state_dir, cgroups=cgroups)
    with anyio.fail_after(A_MINUTE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reaper.run, 0.01)
            for _ in range(2):
                dead = killed(state_dir, cgroups)
                while dead.directory.exists():
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
