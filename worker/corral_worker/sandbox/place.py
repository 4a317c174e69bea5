"""What a sandbox occupies on the host: its bundle and its cgroup."""

from __future__ import annotations

import math
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath

import anyio
import msgspec

from corral import EffectiveLimits, HostLimits, Job
from corral_worker.process.capture import Spool
from corral_worker.sandbox.bundle import ROOT_DIRECTORY, SandboxSpec, host_tasks, oci_config
from corral_worker.sandbox.cgroup import CgroupError, Counters, SandboxCgroup
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.notes import Notes
from corral_worker.sandbox.runsc_errors import error_messages
from corral_worker.sandbox.state import check_sandbox_id
from corral_worker.sandbox.verbs import Logs

_LOG_BYTES = 256 * 1024
_ERRORS_BYTES = 8 * 1024 * 1024
"""A message quotes the job's PATH, of which there may be 1 MiB, as JSON."""
_REMOVE_PAUSE_S = 0.005


class LogBook(msgspec.Struct, frozen=True, kw_only=True):
    """What runsc and the sentry wrote about a sandbox."""

    errors: tuple[str, ...]
    panic: str
    wait_status: int | None
    """The program's own wait status, if the sentry lived to tell it."""
    begun: bool
    """Whether the program has begun for certain."""
    run_s: float
    """Seconds between the program's start and its end, by the sentry's clock; 0 if not known."""


class Place:
    """The bundle directory and the cgroup of one sandbox.

    All methods block for a few milliseconds at most, :meth:`remove` up to its
    deadline: call them in a thread.

    Args:
        sandbox_id: as :class:`Holdings` gives it, held as long as this is used.
        runs: directory for the bundles.
        cgroups: where the cgroup is made.
        writers: how many may write large outputs at one time.
    """

    def __init__(
        self, sandbox_id: str, runs: Path, cgroups: CgroupHost, writers: anyio.CapacityLimiter
    ) -> None:
        self.id = check_sandbox_id(sandbox_id)
        self.bundle = runs / self.id
        self.logs = Logs(directory=self.bundle)
        self.spool = Spool(self.bundle, writers)
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
            OSError: the host cannot say, for example for want of a file descriptor.
        """
        host_limits = self.cgroup.limit(_host_limits(limits))
        self.cgroup.begin()
        return host_limits, self.cgroup.counters()

    def config(self, job: Job, limits: EffectiveLimits, rootfs: Path) -> dict[str, object]:
        """Return the OCI configuration of a program in this sandbox."""
        return oci_config(self.spec(job, limits, rootfs))

    def spec(self, job: Job, limits: EffectiveLimits, rootfs: Path) -> SandboxSpec:
        """Return what that depends on."""
        return SandboxSpec(
            job=job,
            limits=limits,
            rootfs=PurePosixPath(rootfs),
            cgroups_path=self.cgroup.runsc_path,
        )

    def _write_bundle(self, config: dict[str, object]) -> None:
        self.bundle.mkdir(parents=True)
        (self.bundle / ROOT_DIRECTORY).mkdir(mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(self.bundle / "config.json", flags, 0o600), "wb") as file:
            file.write(msgspec.json.encode(config))

    def counters(self) -> Counters:
        """Return what the kernel counted so far."""
        return self.cgroup.counters()

    def log_book(self, notes: Notes) -> LogBook:
        """Return what was written about the sandbox; files that are not there are empty."""
        return LogBook(
            errors=tuple(error_messages(_read(self.logs.errors, most=_ERRORS_BYTES))),
            panic=_read(self.logs.panic, most=_LOG_BYTES).decode(errors="replace"),
            wait_status=notes.wait_status,
            begun=notes.begun,
            run_s=notes.run_s,
        )

    def remove(self, *, within_s: float) -> list[str]:
        """Remove bundle and cgroup, killing what is left; return what could not be removed.

        Gone already is no error.
        """
        deadline = time.monotonic() + within_s
        left: list[str] = []
        while True:
            try:
                # What has processes cannot be removed: most often there are none any more.
                self.cgroup.remove()
            except (CgroupError, OSError) as error:
                # Those that are killed take a moment to be gone.
                if time.monotonic() < deadline:
                    with suppress(CgroupError, OSError):
                        self.cgroup.kill()
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


def _read(file: Path, *, most: int) -> bytes:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        text = os.read(descriptor, _LOG_BYTES)
        # Few need more than one reading, and a large one costs also where there is little.
        while part := os.read(descriptor, most - len(text)) if len(text) >= _LOG_BYTES else b"":
            text += part
    except OSError:
        return b""
    else:
        return text
    finally:
        os.close(descriptor)
