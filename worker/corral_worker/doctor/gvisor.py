"""Looks at gVisor: the runtime, and a sandbox that boots."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import anyio.to_thread

from corral import CorralError, ErrImageNotFound, Fault
from corral_worker.doctor.finding import Finding, fail, ok, warn
from corral_worker.host import open_host
from corral_worker.process.call import PATH
from corral_worker.sandbox.runsc import Runsc, find, is_old
from corral_worker.sandbox.runsc_errors import RunscError
from corral_worker.settings import Settings

_VERSION_WITHIN_S = 15.0
_INSTALL = "Install gVisor's runsc, 2024-07-29 or later, or name one with runsc_path."
_KVM = Path("/dev/kvm")


async def look_at_runsc(settings: Settings) -> Iterable[Finding]:
    """Say which runsc there is and whether it is one that is known to work."""
    try:
        runsc = Runsc(
            binary=await anyio.to_thread.run_sync(find, settings.runsc_path),
            root=settings.state_dir,
            platform=settings.platform,
        )
        version = await runsc.version(within_s=_VERSION_WITHIN_S)
    except RunscError as error:
        return (fail("runsc.version", error.detail, _INSTALL),)
    return (runtime(str(runsc.binary), version),)


def runtime(binary: str, version: str) -> Finding:
    """Judge a runsc by its version."""
    seen = f"{binary}, version {version}"
    if is_old(version):
        return fail("runsc.version", f"{seen}: too old", _INSTALL)
    return ok("runsc.version", seen)


def look_at_platform(settings: Settings) -> Iterator[Finding]:
    """Say whether the platform can be had, and whether what starts runsc is there."""
    kvm = os.access(_KVM, os.R_OK | os.W_OK)
    yield platform(settings.platform, has_kvm=kvm)
    setpriv = shutil.which("setpriv", path=PATH)
    if setpriv is None:
        yield fail("runsc.setpriv", "not installed", "Install the Debian package util-linux.")
    else:
        yield ok("runsc.setpriv", setpriv)


def platform(name: str, *, has_kvm: bool) -> Finding:
    """Judge the platform that the settings name."""
    if name == "kvm" and not has_kvm:
        return fail(
            "runsc.platform",
            f"kvm, but {_KVM} cannot be opened",
            'Set platform = "systrap", which runs on every host.',
        )
    if name == "ptrace":
        return warn(
            "runsc.platform", "ptrace, which is slow", 'Set platform = "systrap" unless it fails.'
        )
    return ok("runsc.platform", name)


async def look_at_sandbox(settings: Settings) -> Iterable[Finding]:
    """Boot a sandbox as a worker does at its start, and say how long that took."""
    began = time.monotonic()
    try:
        async with open_host(settings):
            took = time.monotonic() - began
    except ErrImageNotFound as error:
        return (fail("runsc.sandbox", f"not tried: {error}", "Build the images first."),)
    except CorralError as error:
        detail = error.detail if isinstance(error, Fault) else ""
        return (
            fail(
                "runsc.sandbox",
                f"{error}{f': {detail}' if detail else ''}",
                "Mend what else is listed here; if nothing is, read runsc's words to the left.",
            ),
        )
    return (ok("runsc.sandbox", f"booted one and removed it within {took:.1f} s"),)
