"""Decides whether a host is short of something."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from corral_worker.marks import Marks

Shortage = Literal[
    "runsc",
    "sandboxes",
    "memory",
    "disk",
    "inodes",
    "open_files",
    "tasks",
    "cpu_pressure",
    "memory_pressure",
    "io_pressure",
]
"""What a host can be short of."""

_BEYOND = 1.25
"""How far beyond its mark what was short must come back: else a host would swing around it."""


class HostSample(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has at one moment; None is not known, and not judged."""

    runsc: bool
    """Whether runsc is the one that the worker has started with."""
    sandboxes: bool
    """Whether a sandbox could be started when that was tried last."""
    memory_bytes: int | None
    disk_bytes: int | None
    inodes: int | None
    open_files: int | None
    tasks: int | None
    cpu_pressure: float | None
    memory_pressure: float | None
    io_pressure: float | None


def shortages(sample: HostSample, marks: Marks, before: frozenset[Shortage]) -> frozenset[Shortage]:
    """Return what a host is short of, given what it was short of ``before``.

    Something is short once its mark is crossed, and until it is a quarter
    beyond the mark again.
    """
    return frozenset(_short(sample, marks, before))


def _short(sample: HostSample, marks: Marks, before: frozenset[Shortage]) -> Iterator[Shortage]:
    if not sample.runsc:
        yield "runsc"
    if not sample.sandboxes:
        yield "sandboxes"
    left: tuple[tuple[Shortage, int | None, int], ...] = (
        ("memory", sample.memory_bytes, marks.memory_bytes),
        ("disk", sample.disk_bytes, marks.disk_bytes),
        ("inodes", sample.inodes, marks.inodes),
        ("open_files", sample.open_files, marks.open_files),
        ("tasks", sample.tasks, marks.tasks),
    )
    for name, has, mark in left:
        if has is not None and has < (mark * _BEYOND if name in before else mark):
            yield name
    pressures: tuple[tuple[Shortage, float | None, float], ...] = (
        ("cpu_pressure", sample.cpu_pressure, marks.cpu_pressure),
        ("memory_pressure", sample.memory_pressure, marks.memory_pressure),
        ("io_pressure", sample.io_pressure, marks.io_pressure),
    )
    for name, percent, most in pressures:
        if percent is None or not most:
            continue
        if percent > (most / _BEYOND if name in before else most):
            yield name
