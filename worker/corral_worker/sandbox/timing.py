"""Decides whether the times of a result say something about the job, or about its host.

A job at its own limit of processors is slowed down as it has asked for: that is
no strain of the host, whose processors are idle meanwhile. What makes times
unreliable is that others were in the way.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

_WAITING = 0.25
"""Part of a run in which something waited for a processor and hardly one was idle."""
_IDLE = 0.1
"""Part of all processors' time that may be idle in such a run."""
_STOLEN = 0.05
"""Part of all processors' time that the hypervisor may give to other machines."""
_STALLED = 0.05
"""Part of a run in which everything on the host may wait for memory."""

_MICRO = 1e-6
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_IDLE_FIELDS = slice(3, 5)
_STEAL_FIELD = 7
_TIME_FIELDS = slice(0, 8)
_BEGINNING = 512
"""Bytes of a file that hold all of it that counts here."""


class Strain(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of a host that only ever grow, in seconds."""

    at_s: float
    """When they were read, monotonic."""
    waiting_s: float | None
    """With something waiting for a processor; None where the kernel keeps no PSI."""
    stalled_s: float | None
    """With everything waiting for memory; None as before."""
    processors_s: float
    """Of all processors together."""
    idle_s: float
    stolen_s: float


def read_strain(at_s: float, *, proc: Path = Path("/proc")) -> Strain | None:
    """Return the counters as they are; None if they cannot be read.

    Blocks for less than a millisecond: call it in a thread.
    """
    first, _, _ = _beginning(f"{proc}/stat").partition(b"\n")
    times = [int(ticks) / _TICKS_PER_S for ticks in first.split()[1:]]
    if not times:
        return None
    return Strain(
        at_s=at_s,
        waiting_s=_total(f"{proc}/pressure/cpu", b"some"),
        stalled_s=_total(f"{proc}/pressure/memory", b"full"),
        processors_s=sum(times[_TIME_FIELDS]),
        idle_s=sum(times[_IDLE_FIELDS]),
        stolen_s=times[_STEAL_FIELD] if len(times) > _STEAL_FIELD else 0.0,
    )


def is_unreliable(before: Strain | None, after: Strain | None) -> bool:
    """Return whether the host was so strained in between that times are not the job's own.

    That is: for a quarter of the time something waited for a processor while
    fewer than a tenth of them were idle; or the hypervisor took a twentieth of
    the processors away; or everything waited for memory for a twentieth of the time.
    """
    if before is None or after is None:
        return False
    seconds = after.at_s - before.at_s
    processors_s = after.processors_s - before.processors_s
    if seconds <= 0:
        return False
    if _grown(before.stalled_s, after.stalled_s) > _STALLED * seconds:
        return True
    if processors_s <= 0:
        return False  # shorter than a tick of the kernel's clock
    if after.stolen_s - before.stolen_s > _STOLEN * processors_s:
        return True
    busy = after.idle_s - before.idle_s < _IDLE * processors_s
    return busy and _grown(before.waiting_s, after.waiting_s) > _WAITING * seconds


def _grown(before: float | None, after: float | None) -> float:
    return 0.0 if before is None or after is None else after - before


def _total(file: str, who: bytes) -> float | None:
    for line in _beginning(file).splitlines():
        if line.startswith(who):
            return int(line.rpartition(b"total=")[2]) * _MICRO
    return None


def _beginning(file: str) -> bytes:
    """Return what stands first in a file of the kernel; nothing if it cannot be read."""
    # Each job asks twice: file objects would cost three times as much as all of this.
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _BEGINNING)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
