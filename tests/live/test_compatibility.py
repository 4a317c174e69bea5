"""Every row of docs/compatibility.md is a test: the program it names runs in a real sandbox."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import anyio
import pytest

from corral import EffectiveLimits, ErrImageNotFound, Job, Outcome
from corral_worker.images.store import ImageStore
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

HERE = Path(__file__).parent / "compatibility"
PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
WORKS = re.findall(
    r"^\| \[.+?\]\(\.\./tests/live/compatibility/works/(.+?)\) \|", PAGE, re.MULTILINE
)
BLOCKED = re.findall(r"^\| (.+?) \| `(E[A-Z]+)` \|", PAGE, re.MULTILINE)

# A job's defaults, except for time: machines that are emulated take ten times as long.
LIMITS = EffectiveLimits(wall_s=80, cpu_time_s=80)
DONE = Ending(outcome=Outcome.EXITED, exit_code=0)


@pytest.fixture(scope="session")
def toolbox(images: Path) -> Path:
    """Root file system with the tools that developers use."""
    packages = (HERE / "packages").read_bytes()
    name = f"toolbox-{hashlib.sha256(packages).hexdigest()[:8]}"
    try:
        return anyio.run(ImageStore(images).resolve, name).rootfs
    except ErrImageNotFound:
        # To build it takes longer than a test may.
        return pytest.fail(f"this machine has no image {name}: `tools/setup --test` makes it")


async def run(
    sandboxes: ColdStart, rootfs: Path, program: Path, interpreter: str, *arguments: str
) -> Report:
    # From a file: multiprocessing looks there for what its processes shall do.
    script = f'cat >/tmp/job && exec {interpreter} /tmp/job "$@"'
    job = Job(
        argv=("/bin/sh", "-c", script, "sh", *arguments),
        stdin=await anyio.Path(program).read_bytes(),
    )
    return await sandboxes.run(job, LIMITS, rootfs, Stop())


@pytest.mark.parametrize("name", WORKS)
async def test_what_the_page_says_works(sandboxes: ColdStart, toolbox: Path, name: str) -> None:
    program = HERE / "works" / name

    report = await run(
        sandboxes, toolbox, program, {".py": "python3", ".sh": "sh -eu"}[program.suffix]
    )

    assert (report.stderr.data.decode(), report.stdout.data.decode()) == ("", "")
    assert report.ending == DONE


@pytest.mark.parametrize(("attempt", "error"), BLOCKED)
async def test_what_the_page_says_is_blocked_meets_that_error(
    sandboxes: ColdStart, toolbox: Path, attempt: str, error: str
) -> None:
    report = await run(sandboxes, toolbox, HERE / "blocked.py", "python3", attempt)

    assert (report.stderr.data.decode(), report.stdout.data.decode()) == ("", f"{error}\n")
    assert report.ending == DONE


def test_the_page_tells_of_everything_that_is_tried() -> None:
    attempts = re.findall(r'^    "(.+?)": ', (HERE / "blocked.py").read_text(), re.MULTILINE)

    assert sorted(WORKS) == sorted(path.name for path in (HERE / "works").iterdir())
    assert sorted(attempt for attempt, _ in BLOCKED) == sorted(attempts)
