"""What a sandbox occupies on the host: its bundle and its cgroup."""

from __future__ import annotations

import datetime as dt
import math
import re
import shutil
import time
from pathlib import Path, PurePosixPath

import msgspec

from corral import EffectiveLimits, HostLimits, Job
from corral_worker.sandbox.bundle import ROOT_DIRECTORY, SandboxSpec, host_tasks, oci_config
from corral_worker.sandbox.cgroup import CgroupError, Counters, SandboxCgroup
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.runsc_errors import error_messages
from corral_worker.sandbox.state import check_sandbox_id
from corral_worker.sandbox.verbs import Logs

_LOG_BYTES = 256 * 1024
_REMOVE_PAUSE_S = 0.005
_WAIT_STATUS = re.compile(r"Exiting with status: (\d+)\Z")
# The sentry died, and what runsc notes next is how: of its program nobody knows.
_SENTRY_LOST = re.compile(r"sandbox\.go:\d+\] Wait RPC to container .* failed")


class LogBook(msgspec.Struct, frozen=True, kw_only=True):
    """What runsc and the sentry wrote about a sandbox."""

    errors: tuple[str, ...]
    panic: str
    wait_status: int | None
    """The program's own wait status, if the sentry lived to tell it and runsc to note it."""
    begun: bool
    """Whether runsc noted an end of the program, or of the sentry that ran it."""
    run_s: float
    """Seconds between runsc's last note before the program and its end."""


class Place:
    """The bundle directory and the cgroup of one sandbox.

    All methods block for a few milliseconds at most, :meth:`remove` up to its
    deadline: call them in a thread.

    Args:
        sandbox_id: as :class:`Holdings` gives it, held as long as this is used.
        runs: directory for the bundles.
        cgroups: where the cgroup is made.
    """

    def __init__(self, sandbox_id: str, runs: Path, cgroups: CgroupHost) -> None:
        self.id = check_sandbox_id(sandbox_id)
        self.bundle = runs / self.id
        self.logs = Logs(directory=self.bundle)
        self.cgroup: SandboxCgroup = cgroups.sandbox(self.id)

    def make(self, job: Job, limits: EffectiveLimits, rootfs: Path) -> HostLimits:
        """Write the bundle, make the cgroup, and return its limits as read back.

        Raises:
            CgroupError: a limit would not hold.
            OSError: the bundle cannot be written.
        """
        self._write_bundle(self.config(job, limits, rootfs))
        return self.cgroup.create(_host_limits(limits))

    def prepare(self, job: Job, limits: EffectiveLimits, rootfs: Path) -> None:
        """Do the same for a sandbox that waits for its job: the processor goes to others first.

        Raises:
            CgroupError: the kernel refuses.
            OSError: the bundle cannot be written.
        """
        self._write_bundle(self.config(job, limits, rootfs))
        self.cgroup.create(msgspec.structs.replace(_host_limits(limits), cpus=math.inf))
        self.cgroup.yield_processor()

    def hand_over(self, limits: EffectiveLimits) -> tuple[HostLimits, Counters]:
        """Set a job's limits, and return them as read back and what was counted before it.

        Raises:
            CgroupError: a limit would not hold.
        """
        host_limits = self.cgroup.limit(_host_limits(limits))
        self.cgroup.begin()
        return host_limits, self.cgroup.counters()

    def config(self, job: Job, limits: EffectiveLimits, rootfs: Path) -> dict[str, object]:
        """Return the OCI configuration of a program in this sandbox."""
        return oci_config(
            SandboxSpec(
                job=job,
                limits=limits,
                rootfs=PurePosixPath(rootfs),
                cgroups_path=self.cgroup.runsc_path,
            )
        )

    def _write_bundle(self, config: dict[str, object]) -> None:
        (self.bundle / ROOT_DIRECTORY).mkdir(parents=True, mode=0o700)
        file = self.bundle / "config.json"
        file.touch(mode=0o600, exist_ok=False)
        file.write_bytes(msgspec.json.encode(config))

    def counters(self) -> Counters:
        """Return what the kernel counted so far."""
        return self.cgroup.counters()

    def log_book(self) -> LogBook:
        """Return what was written about the sandbox; files that are not there are empty."""
        notes = _read(self.logs.run)
        begun, wait_status, run_s = _program(notes)
        return LogBook(
            errors=tuple(error_messages(_read(self.logs.errors))),
            panic=_read(self.logs.panic).decode(errors="replace"),
            wait_status=wait_status,
            begun=begun,
            run_s=run_s,
        )

    def remove(self, *, within_s: float) -> list[str]:
        """Remove bundle and cgroup, killing what is left; return what could not be removed.

        Gone already is no error.
        """
        deadline = time.monotonic() + within_s
        left: list[str] = []
        while True:
            try:
                self.cgroup.kill()
                self.cgroup.remove()
            except (CgroupError, OSError) as error:
                # Processes that were killed take a moment to be gone.
                if time.monotonic() < deadline:
                    time.sleep(_REMOVE_PAUSE_S)
                    continue
                left.append(str(error))
            break
        while self.bundle.exists():
            shutil.rmtree(self.bundle, ignore_errors=True)
            if not self.bundle.exists():
                break
            if time.monotonic() >= deadline:
                left.append(f"bundle {self.bundle}")
                break
            # It needs a file descriptor, and there may be none for a moment.
            time.sleep(_REMOVE_PAUSE_S)
        return left


def _host_limits(limits: EffectiveLimits) -> HostLimits:
    return HostLimits(
        memory_bytes=limits.memory_bytes,
        swap_bytes=0,
        cpus=limits.cpus,
        tasks=host_tasks(limits),
    )


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_LOG_BYTES)
    except OSError:
        return b""


class _Note(msgspec.Struct):
    msg: str
    time: dt.datetime


def _program(notes: bytes) -> tuple[bool, int | None, float]:
    """Return whether the program began, its wait status, and how long it ran, by runsc's notes."""
    previous: dt.datetime | None = None
    lost = False
    for line in notes.splitlines():
        try:
            note = msgspec.json.decode(line, type=_Note)
        except ValueError:
            continue
        if match := _WAIT_STATUS.search(note.msg):
            ran_s = (note.time - previous).total_seconds() if previous else 0.0
            return True, None if lost else int(match[1]), ran_s
        if _SENTRY_LOST.match(note.msg):
            lost = True
        else:
            previous = note.time
    return lost, None, 0.0
