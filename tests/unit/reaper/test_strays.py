"""What of a worker's own no sandbox holds is removed at second sight."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.estates import A_MINUTE, OF_ONE_SANDBOX, Start, furnish, living, traces

from corral_worker.reaper.claim import Claim
from corral_worker.reaper.sweep import Deadline, Sweep, Sweeper
from corral_worker.reaper.trace import Counts
from corral_worker.sandbox.cgroup_host import CgroupHost


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
