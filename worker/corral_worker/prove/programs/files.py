"""Looks through everything that can be read for something of the host."""

from __future__ import annotations

import os
import sys

from corral_worker.prove.programs.attempts import attempt, read, tell

name = os.path.basename(sys.argv[1])
found: list[str] = []
looked = 0
for parent, directories, files in os.walk("/"):
    if parent == "/proc":
        directories[:] = ["self"]
    looked += len(files)
    found.extend(os.path.join(parent, each) for each in (*directories, *files) if name in each)


def find() -> list[str]:
    if not found:
        raise FileNotFoundError(name)
    return found


def mounted() -> str:
    mounts = read("/proc/self/mountinfo").decode()
    if "9p" not in mounts and "/var/lib" not in mounts and name not in mounts:
        raise FileNotFoundError("nothing of the host is mounted")
    return mounts


attempt("find it", find)
attempt("see a directory of the host mounted", mounted)
attempt("read the host's passwords", lambda: read("/etc/shadow"))
attempt("see the host's disks", lambda: os.listdir("/dev/disk"))
attempt("see the host's keys", lambda: os.listdir("/root/.ssh"))
attempt("see the worker's state", lambda: os.listdir("/var/lib/corral"))
tell(looked=looked)
