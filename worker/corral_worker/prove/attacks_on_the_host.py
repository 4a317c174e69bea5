"""Attacks that look for a way out: to the host's files, processes, network and kernel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from corral import Job, Outcome
from corral_worker.prove.attack import Attack, Observed, Scene
from corral_worker.prove.guest import python
from corral_worker.prove.judges import both, ends, fact, refused

_PIDS = 20_000
"""How many pids are shot at."""


def _kernel(kind: str, scene: Scene) -> Job:
    return python("kernel", kind, limits=scene.limits())


def _has_no_more_than_its_own(observed: Observed) -> Iterator[str]:
    variables, allowed = fact(observed, "variables"), fact(observed, "allowed")
    if variables < 1 or variables != allowed:
        yield f"it has {variables} variables, {allowed} of which are a sandbox's own"


def _clock_stood(observed: Observed) -> Iterator[str]:
    # Its program takes less than that, however slow the machine.
    if not 0 <= fact(observed, "moved") <= observed.scene.seconds(60):
        yield "it saw another time than before"


def _looked(observed: Observed) -> Iterator[str]:
    if fact(observed, "looked") < 100:  # noqa: PLR2004 - any image with Python has more files
        yield "it did not look through the image"


HOST = (
    Attack(
        name="links_and_dots",
        expected="no path leads out of the image",
        job=lambda scene: python("links", scene.directory, limits=scene.limits()),
        judge=refused(14),
    ),
    Attack(
        name="host_files",
        expected="nothing of the host's files is there",
        job=lambda scene: python("files", scene.directory, limits=scene.limits()),
        judge=both(refused(6), _looked),
    ),
    Attack(
        name="host_environment",
        expected="no variable but the sandbox's own",
        job=lambda scene: python("environment", limits=scene.limits()),
        judge=both(ends(Outcome.EXITED, exit_code=0), _has_no_more_than_its_own),
    ),
    Attack(
        name="host_processes",
        expected="no process but its own can be seen or hit",
        job=lambda scene: python(
            "processes",
            str(scene.process),
            str(scene.sized(_PIDS)),
            limits=scene.limits(),
        ),
        judge=refused(7),
    ),
    Attack(
        name="ptrace",
        expected="no process of the host can be traced or read",
        job=lambda scene: python("trace", str(scene.process), limits=scene.limits()),
        judge=refused(10),
    ),
    Attack(
        name="proc_and_sys",
        expected="nothing of the kernel can be written or read",
        job=lambda scene: python("pokes", limits=scene.limits()),
        judge=refused(36),
    ),
    Attack(
        name="network_and_metadata",
        expected="nobody can be reached or named",
        job=lambda scene: python("network", limits=scene.limits()),
        judge=refused(23),
    ),
    Attack(
        name="host_services",
        expected="neither its loopback nor its sockets can be reached",
        job=lambda scene: python(
            "host_services",
            str(scene.port),
            scene.abstract,
            scene.directory,
            limits=scene.limits(),
        ),
        judge=refused(8),
    ),
    Attack(
        name="privileges",
        expected="no root and no capability to be had",
        job=lambda scene: python("privileges", limits=scene.limits()),
        judge=refused(10),
    ),
    Attack(
        name="mounts",
        expected="nothing can be mounted, and no device made",
        job=lambda scene: python("mounts", limits=scene.limits()),
        judge=refused(17),
    ),
    *(
        Attack(
            name=name,
            expected=expected,
            job=partial(_kernel, kind),
            judge=refused(tries),
        )
        for name, kind, tries, expected in (
            ("bpf", "bpf", 2, "no program and no map can be loaded"),
            ("perf", "perf", 3, "nothing can be counted"),
            ("kvm_and_devices", "devices", 10, "no device of the host is there"),
            ("raw_sockets", "sockets", 5, "no socket below or beside IP"),
            ("kernel_calls", "calls", 14, "no modules, keys, io_uring and the like"),
        )
    ),
    Attack(
        name="clock",
        expected="the clock cannot be set",
        job=lambda scene: python("clock", limits=scene.limits()),
        judge=both(refused(5), _clock_stood),
    ),
)
"""In the order in which they are told."""
