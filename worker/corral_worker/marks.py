"""What a host must have left for another job to be taken."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

_MIB = 1024 * 1024

Percent = Annotated[float, Meta(ge=0, le=100)]


class Marks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Marks that a host must not cross if its worker is to take jobs; 0 switches one off."""

    memory_bytes: Annotated[int, Meta(ge=0)] = 256 * _MIB
    """Memory available, as ``MemAvailable`` of proc(5)."""
    disk_bytes: Annotated[int, Meta(ge=0)] = 256 * _MIB
    """Free space in the worker's directory."""
    inodes: Annotated[int, Meta(ge=0)] = 1024
    """Files that can still be made there."""
    open_files: Annotated[int, Meta(ge=0)] = 256
    """File descriptors left, to the worker and to the host."""
    tasks: Annotated[int, Meta(ge=0)] = 256
    """Processes and threads that can still be started, by the worker and on the host."""
    cpu_pressure: Percent = 0
    """Percent of ten seconds in which something waited for a processor. Off: slots limit that."""
    memory_pressure: Percent = 20
    """Percent of ten seconds in which all that ran waited for memory."""
    io_pressure: Percent = 0
    """Percent of ten seconds in which all that ran waited for disks."""
