"""All that is known of a sandbox when its program has ended."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from corral import CorralError, HostLimits, Termination
from corral.result import StartWay
from corral_worker.process.capture import Captured
from corral_worker.sandbox.cgroup import Counters
from corral_worker.sandbox.ladder import Life, certificate
from corral_worker.sandbox.outcome import Ending, Evidence, decide
from corral_worker.sandbox.place import LogBook
from corral_worker.sandbox.stop import Stop
from corral_worker.sandbox.timing import Strain, is_unreliable

Start = Literal["cold", "warm"]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a sandbox that is gone."""

    ending: Ending | CorralError
    stdout: Captured
    stderr: Captured
    counters: Counters
    host_limits: HostLimits
    start: Start
    start_way: StartWay
    start_s: float
    """Seconds from the first step until the program ran."""
    run_s: float
    teardown_s: float
    """Seconds from its end until the sandbox was dead."""
    timing_unreliable: bool
    """Whether the host was too busy for these times to be the program's own."""
    termination: Termination | None
    leftovers: tuple[str, ...]
    """What could not be removed from the host, as far as that is known yet."""
    sandbox: str
    """Name of the sandbox on the host, by which traces of it can be looked for."""


def report(
    sandbox: str,
    life: Life,
    stop: Stop,
    book: LogBook,
    *,
    streams: tuple[Captured, Captured],
    strain: tuple[Strain | None, Strain | None],
    counters: Counters,
    host_limits: HostLimits,
    start: Start,
    start_way: StartWay,
    leftovers: tuple[str, ...],
) -> Report:
    """Return the report of a sandbox that is dead; its teardown ends now."""
    now = time.monotonic()
    ended = life.ended or now
    started = life.running is not None or book.begun
    # How long it ran is the sentry's word, if it had the last one: `runsc run` ends some
    # time after the program. But no longer than the sandbox lived.
    run_s = min(book.run_s or ended - (life.running or ended), ended - life.began)
    running = min(life.running or ended, ended - run_s)
    ending = decide(
        Evidence(
            started=started,
            created=life.created,
            status=life.status,
            wait_status=book.wait_status,
            kill=life.killed,
            oom_kills=counters.oom_kills,
            peak_memory_bytes=counters.peak_memory_bytes,
            memory_limit_bytes=host_limits.memory_bytes,
            peak_tasks=counters.peak_tasks,
            tasks_limit=host_limits.tasks,
            panic=book.panic,
            errors=book.errors,
        )
    )
    return Report(
        ending=ending,
        stdout=streams[0],
        # Before the program ran, it was runsc that wrote there.
        stderr=streams[1] if started else Captured(data=b"", total=0, gap=None),
        counters=counters,
        host_limits=host_limits,
        start=start,
        start_way=start_way,
        start_s=running - life.began,
        run_s=run_s if started else 0.0,
        teardown_s=now - running - run_s,
        timing_unreliable=is_unreliable(*strain),
        termination=certificate(ending, stop, life),
        leftovers=leftovers,
        sandbox=sandbox,
    )
