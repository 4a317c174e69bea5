"""The short form of ``make soak``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("slots", [4])
def test_every_job_ends_once_and_rightly_while_runsc_and_workers_get_killed(
    slots: int, tmp_path: Path
) -> None:
    seen = tmp_path / "soak.json"
    sizes = ("--jobs", "120", "--runsc-kills", "6", "--worker-kills", "2", "--slots", str(slots))

    done = subprocess.run(
        [sys.executable, "-m", "soak", *sizes, "--output", str(seen)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert msgspec.json.decode(seen.read_bytes())["leftovers"] == 0
