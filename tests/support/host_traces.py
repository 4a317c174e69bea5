"""What there is of workers and sandboxes on a host."""

from __future__ import annotations

from pathlib import Path

from corral_worker.sandbox.cgroup_host import CgroupHost


def mounts_of(host: CgroupHost) -> list[Path]:
    """Return where the hierarchies of cgroups are mounted."""
    return list({*host._hierarchies.values(), *([host._unified] if host._unified else [])})


def parents_of(host: CgroupHost) -> list[Path]:
    """Return the directories of the sandboxes' parent in all hierarchies."""
    found = (mount / host.parent.lstrip("/") for mount in mounts_of(host))
    return [directory for directory in found if directory.exists()]


def running_in(root: Path) -> list[str]:
    """Return the ids of the sandboxes in which a program runs, by runsc's state directory."""
    found = {
        file.stem.partition("_sandbox:")[2]
        for file in root.glob("*.state")
        # As text, for runsc may be about to write it.
        if b'"status":"running"' in file.read_bytes()
    }
    return sorted(found)


def mentions(text: str) -> list[str]:
    """Return the processes that have a text in their arguments, as people read them."""
    return [f"process {pid}: {words}" for pid, words in processes_with(text).items()]


def processes_with(text: str) -> dict[int, str]:
    """Return pids and arguments of the processes that have a text in them; zombies have none."""
    found: dict[int, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in words:
            found[int(process.name)] = words
    return found
