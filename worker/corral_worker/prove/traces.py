"""What there is of a sandbox on the host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_DEEP = 4
"""Levels below the state directory on which anything of a sandbox can be."""
_DEAD = frozenset({"Z", "X"})


def traces(sandbox: str, *, state_dir: Path, cgroup_parent: str) -> tuple[str, ...]:
    """Return processes, cgroups, mounts and files of a sandbox. Blocks for some milliseconds."""
    return (
        *_processes(sandbox),
        *_cgroups(sandbox, cgroup_parent),
        *(f"mount {line}" for line in _lines(Path("/proc/self/mountinfo")) if sandbox in line),
        *_files(sandbox, state_dir),
    )


def _processes(sandbox: str) -> Iterator[str]:
    mention = sandbox.encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            membership = (process / "cgroup").read_bytes()
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        # What is dead and not reaped yet by a slow PID 1 does nothing any more.
        if (mention in command or mention in membership) and state not in _DEAD:
            words = command.replace(bytes(1), b" ").decode(errors="replace")
            yield f"process {process.name}: {words}"


def _cgroups(sandbox: str, parent: str) -> Iterator[str]:
    for line in _lines(Path("/proc/mounts")):
        _, mount, kind, *_ = line.split(" ")
        if kind in {"cgroup", "cgroup2"}:
            directory = Path(mount) / parent.lstrip("/") / sandbox
            if directory.exists():
                yield f"cgroup {directory}"


def _files(sandbox: str, state_dir: Path) -> Iterator[str]:
    for parent, directories, names in os.walk(state_dir):
        if len(Path(parent).relative_to(state_dir).parts) >= _DEEP:
            directories.clear()
        for name in (*directories, *names):
            if sandbox in name:
                yield f"file {Path(parent, name)}"


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()
