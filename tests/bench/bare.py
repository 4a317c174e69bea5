"""``runsc run`` with nothing around it: what every figure is compared with."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from pathlib import Path, PurePosixPath
from typing import Literal

import anyio
import anyio.to_thread
import msgspec
from bench.ground import Ground

from corral import EffectiveLimits, Job
from corral_worker.images.store import ImageStore
from corral_worker.sandbox.bundle import SandboxSpec, oci_config

IMAGES = Path("/var/lib/corral/images")
PROGRAMS = {
    "true": Job(argv=("true",), image="base"),
    "python": Job(argv=("python3", "-c", "print(1)"), image="python"),
    "output": Job(argv=("dd", "if=/dev/zero", "bs=1M", "count=100"), image="base"),
}
LANES = min(4 * (os.cpu_count() or 1), 32)
"""How many run at one time, at the most: with so many no processor has a rest."""

Kind = Literal["dir", "erofs"]

_NAMESPACES = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]
_WITHIN_S = 120.0
_SHARES = {1: 16, 2: 42}
"""What a job of corral's has, by the version of cgroups; runsc makes 42 the weight 2."""


class Bare:
    """Runs the programs, each in a bundle that was written before.

    Without limits, which would only slow it down, but with the weight of corral's jobs: with the
    kernel's own, 1024 shares, it would take more of a busy host from others than they do. A lane is
    not to be used twice at one time.

    Args:
        ground: where the bundles are.
        kind: whether the root file system is a directory, or the image itself.
    """

    def __init__(self, ground: Ground, kind: Kind) -> None:
        self._directory = ground.directory / f"bare-{kind}"
        self._state = self._directory / "r"
        self._parent = ground.parent
        self._cgroup_version = ground.cgroup_version
        self._kind = kind
        self._numbers = itertools.count()

    async def prepare(self) -> None:
        """Unpack the images where that is needed, and write the bundles."""
        self._state.mkdir(parents=True)
        store = ImageStore(IMAGES)
        for name, job in PROGRAMS.items():
            image = (await store.resolve(job.image)).rootfs
            tree = self._directory / job.image
            if self._kind == "dir" and not tree.exists():
                await anyio.run_process(["fsck.erofs", f"--extract={tree}", str(image)])
            for lane in range(LANES):
                config = self._config(f"{name}-{lane}", job, image)
                if self._kind == "dir":
                    config |= {"root": {"path": str(tree), "readonly": True}, "annotations": {}}
                bundle = self._bundle(name, lane)
                (bundle / "rootfs").mkdir(parents=True)
                (bundle / "config.json").write_bytes(msgspec.json.encode(config))

    def command(self, program: str, lane: int) -> list[str]:
        """Return the command, to which a container's name is to be added."""
        flags = ("--platform=systrap", "--network=none", "--overlay2=none")
        bundle = str(self._bundle(program, lane))
        return ["runsc", f"--root={self._state}", *flags, "run", "--bundle", bundle]

    async def run(self, program: str, lane: int = 0) -> float:
        """Run a program, read what it writes, and return the seconds that took."""
        command = [*self.command(program, lane), f"b{next(self._numbers)}"]
        return await anyio.to_thread.run_sync(_run, command)

    def _bundle(self, program: str, lane: int) -> Path:
        return self._directory / "b" / f"{program}-{lane}"

    def _config(self, name: str, job: Job, image: Path) -> dict[str, object]:
        path = f"{self._parent}/bare-{self._kind}-{name}"
        limits = EffectiveLimits(wall_s=_WITHIN_S)
        spec = SandboxSpec(job=job, limits=limits, rootfs=PurePosixPath(image), cgroups_path=path)
        cpu = {"shares": _SHARES[self._cgroup_version]}
        linux = {"namespaces": _NAMESPACES, "cgroupsPath": path, "resources": {"cpu": cpu}}
        return {**oci_config(spec), "linux": linux}


def _run(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(
        command,
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_WITHIN_S,
        start_new_session=True,
    )
    return time.monotonic() - began
