"""/proc tells a program of itself and its children, and ps and pgrep can read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

me = Path("/proc/self")
status = dict(
    line.split(":\t", 1) for line in (me / "status").read_text().splitlines() if "\t" in line
)
assert int(status["Pid"]) == os.getpid()
assert Path(sys.executable).samefile(me / "exe")
assert (me / "cmdline").read_bytes().split(b"\0")[0].endswith(b"python3")
assert (me / "cwd").readlink() == Path.cwd()
assert b"PATH=" in (me / "environ").read_bytes()
assert "[stack]" in (me / "maps").read_text()
with Path("file").open("w") as opened:
    assert (me / "fd" / str(opened.fileno())).readlink() == Path.cwd() / "file"
assert (me / "task" / str(os.getpid())).is_dir()
assert int((me / "statm").read_text().split()[0]) > 0
assert Path("/proc/meminfo").read_text().startswith("MemTotal:")
assert "processor" in Path("/proc/cpuinfo").read_text()

with subprocess.Popen(["sleep", "1000"]) as child:
    listed = subprocess.run(
        ["ps", "-o", "args=", "-p", str(child.pid)], stdout=subprocess.PIPE, check=True
    )
    found = subprocess.run(["pgrep", "-x", "sleep"], stdout=subprocess.PIPE, check=True)
    child.kill()
assert listed.stdout == b"sleep 1000\n"
assert found.stdout.split() == [str(child.pid).encode()]
