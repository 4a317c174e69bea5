from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from corral_worker.secret import Secret
from corral_worker.settings import Settings

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "corral-worker.service"


def setting(name: str) -> str:
    (value,) = re.findall(rf"(?m)^{name}=(.*)$", UNIT.read_text())
    return str(value)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    # An ExecStart that is not installed is the one complaint that is about this machine.
    text, replaced = re.subn(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text())
    copy = tmp_path / UNIT.name
    copy.write_text(text)

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", copy],
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )

    assert replaced == 1
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_a_stop_leaves_the_worker_time_to_drain_and_to_clean_up() -> None:
    stop_s = int(setting("TimeoutStopSec").removesuffix("s"))

    assert stop_s >= 2 * Settings(redis_url=Secret("redis://host")).drain_grace_s
