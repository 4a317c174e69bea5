"""How a job ended."""

from __future__ import annotations

import asyncio
import enum
from datetime import datetime
from typing import Literal

import msgspec


class Outcome(enum.StrEnum):
    """How a program ended: a closed set."""

    EXITED = "exited"
    """It ended by itself, with an exit code."""
    SIGNALLED = "signalled"
    """A signal that was not corral's ended it."""
    WALL_TIMEOUT = "wall_timeout"
    """Killed: it ran longer than its wall limit."""
    CPU_TIMEOUT = "cpu_timeout"
    """Killed: it used more processor time than its limit."""
    OUT_OF_MEMORY = "out_of_memory"
    """The kernel killed it at its memory limit."""
    PIDS_EXCEEDED = "pids_exceeded"
    """It hit its limit of processes and did not survive that."""
    OUTPUT_EXCEEDED = "output_exceeded"
    """Killed: it wrote more output than the limit that kills, ``output_kill_bytes``."""
    DISK_EXCEEDED = "disk_exceeded"
    """Killed: its writable directories together held more than ``disk_bytes``.

    One directory alone that is full is the program's own ``ENOSPC``.
    """
    CANCELLED = "cancelled"
    """A caller asked for its end."""
    EXPIRED = "expired"
    """It could not be started in the time the caller gave.

    A job of a stock arq client has a time of arq's, too: ``expires_extra_ms``,
    a day unless its pool says otherwise.
    """


class EffectiveLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits as numbers, none left open. Units as in :class:`corral.Limits`."""

    wall_s: float = 30.0
    cpu_time_s: float = 60.0
    cpus: float = 1.0
    memory_bytes: int = 512 * 1024 * 1024
    pids: int = 128
    disk_bytes: int = 100 * 1024 * 1024
    file_bytes: int = 1024**3
    output_bytes: int = 1024 * 1024
    output_kill_bytes: int = 1024**4
    open_files: int = 1024


class HostLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the host's kernel was told, read back after it was written."""

    memory_bytes: int
    swap_bytes: int | None
    """None on a host without swap whose kernel would not limit it."""
    cpus: float
    tasks: int
    """Limit of host threads: the job's processes and gVisor's own."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What the sandbox used, as the host's kernel counted it."""

    cpu_s: float
    peak_memory_bytes: int
    peak_tasks: int | None
    """Most host threads at one time, gVisor's own included."""


class Phases(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time went, in seconds."""

    queued_s: float = 0.0
    sandbox_s: float = 0.0
    run_s: float = 0.0
    teardown_s: float = 0.0


KillStep = Literal["runsc_kill", "cgroup_kill", "process_kill", "runsc_delete"]


class Termination(msgspec.Struct, frozen=True, kw_only=True):
    """Certificate of an end that corral brought about."""

    cause: Outcome
    requested_by: Literal["limit", "caller", "worker"]
    steps: tuple[KillStep, ...]
    """What was done, in the order in which it was begun."""
    verified_dead: bool
    """Whether the sandbox's cgroup was seen empty."""
    latency_s: float
    """Seconds from the decision until the sandbox was seen dead."""


StartWay = Literal["command_line", "control_socket"]


class Provenance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ran the job."""

    image_digest: str
    runsc_version: str
    platform: str
    host: str
    attempt: int
    start: Literal["cold", "warm"]
    """Whether its sandbox was booted for it, or had waited for it."""
    start_way: StartWay | None = None
    """How its program was started: by a ``runsc run``, as after every cold start, or over gVisor's
    control socket, which is faster. None in what an older worker wrote."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended, with all that is known of it.

    Only :attr:`outcome` is always known: a job cancelled or expired in the
    queue never had a program.
    """

    outcome: Outcome
    exit_code: int | None = None
    """The program's own exit code, if it exited."""
    signal: int | None = None
    """Number of the signal that ended the program, if one did."""
    stdout: bytes = b""
    """What was kept of standard output: all of it, or its head and its tail."""
    stderr: bytes = b""
    stdout_bytes: int = 0
    """How much the program wrote in all."""
    stderr_bytes: int = 0
    stdout_gap: int | None = None
    """Offset in :attr:`stdout` where bytes were left out; None if none were."""
    stderr_gap: int | None = None
    truncated: bool = False
    """Whether either stream has a gap."""
    duration_s: float = 0.0
    """Seconds from the program's start to its end."""
    usage: Usage | None = None
    phases: Phases = Phases()
    timing_unreliable: bool = False
    """Whether the host was so busy that the times say more of it than of the job.

    Others were in the way of the job for a good part of the time: tasks waited
    while no processor was idle, the hypervisor took processors away, or memory
    was short. The job's own limit of processors does not count.
    """
    limits: EffectiveLimits | None = None
    """The limits that held."""
    host_limits: HostLimits | None = None
    """The same as the host's kernel knew them, read back."""
    termination: Termination | None = None
    """Set if corral ended the program."""
    provenance: Provenance | None = None
    started_at: datetime | None = None
    labels: dict[str, str] = {}

    @property
    def ok(self) -> bool:
        """Whether the program exited by itself with 0."""
        return self.outcome is Outcome.EXITED and self.exit_code == 0


class JobCancelled(asyncio.CancelledError):
    """What :meth:`arq.jobs.Job.result` raises for a cancelled job.

    arq tells its callers of an abort by :class:`asyncio.CancelledError`; this
    one also has the :class:`Result` with the partial output.
    :meth:`corral.SubmittedJob.result` returns the result instead.
    """

    def __init__(self, result: Result) -> None:
        super().__init__("the job was cancelled")
        self.result = result
