"""The OCI configuration of a sandbox: a pure function of what is to run."""

from __future__ import annotations

from pathlib import PurePosixPath

import msgspec

from corral import EffectiveLimits, Job

ROOT_DIRECTORY = "rootfs"
"""Empty directory in the bundle that OCI wants as root; the EROFS image goes over it."""
WRITABLE = ("/workspace", "/tmp", "/var/tmp", "/home")  # noqa: S108 - the guest's, not the host's

TASKS_PER_PROCESS = 2
"""Host threads that a process of the job takes while it sleeps; one that works takes fewer."""
OWN_TASKS = 32
"""Host threads of gVisor itself: an idle sandbox holds about 15."""

_PERIOD_US = 100_000
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
_NAMESPACES = ("pid", "network", "ipc", "uts", "mount")


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that the configuration depends on."""

    job: Job
    limits: EffectiveLimits
    rootfs: PurePosixPath
    """The image's EROFS file on the host."""
    cgroups_path: str
    hostname: str = "corral"
    sandbox: str | None = None
    """The sandbox that runs already, in which runsc is to make it a container."""


def host_tasks(limits: EffectiveLimits) -> int:
    """Return the limit of host threads with which the job gets all its processes.

    It may get more, for what counts is not processes but host threads.
    """
    return TASKS_PER_PROCESS * limits.pids + OWN_TASKS


def oci_config(spec: SandboxSpec) -> dict[str, object]:
    """Return the OCI runtime configuration.

    The root file system is an EROFS image that the sentry reads itself:
    there is no gofer, and no host directory within reach.
    """
    limits = spec.limits
    uid, gid = spec.job.ids()
    no_capabilities: list[str] = []
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "process": {
            "terminal": False,
            "user": {"uid": uid, "gid": gid},
            "args": list(spec.job.argv),
            "env": [f"{name}={value}" for name, value in _environment(spec.job).items()],
            "cwd": spec.job.cwd,
            "capabilities": dict.fromkeys(_CAPABILITY_SETS, no_capabilities),
            "rlimits": [
                {"type": kind, "soft": value, "hard": value}
                for kind, value in (
                    ("RLIMIT_NOFILE", limits.open_files),
                    ("RLIMIT_FSIZE", limits.file_bytes),
                    ("RLIMIT_CORE", 0),
                )
            ],
            "noNewPrivileges": True,
        },
        "root": {"path": ROOT_DIRECTORY, "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536"],
            },
            {
                "destination": "/dev/shm",  # noqa: S108 - the guest's; POSIX semaphores live there
                "type": "tmpfs",
                "source": "tmpfs",
                "options": [
                    "nosuid",
                    "nodev",
                    "noexec",
                    "mode=1777",
                    f"size={limits.disk_bytes}",
                ],
            },
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
            *(_writable(place, limits) for place in WRITABLE),
        ],
        "annotations": {
            "dev.gvisor.spec.rootfs.source": str(spec.rootfs),
            "dev.gvisor.spec.rootfs.type": "erofs",
            **_pod(spec),
        },
        "linux": {
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            **_cgroup(spec),
            "resources": {
                # The guest's /proc/meminfo and cpu count come from here; what holds are
                # the same numbers on the parent cgroup, which runsc does not remove.
                "memory": {"limit": limits.memory_bytes},
                "cpu": {"quota": int(limits.cpus * _PERIOD_US), "period": _PERIOD_US},
                "pids": {"limit": host_tasks(limits)},
            },
        },
    }


def _pod(spec: SandboxSpec) -> dict[str, str]:
    if spec.sandbox is None:
        return {}
    return {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": spec.sandbox,
    }


def _cgroup(spec: SandboxSpec) -> dict[str, str]:
    # A container in a sandbox has the sandbox's: runsc would only make an empty one.
    return {"cgroupsPath": spec.cgroups_path} if spec.sandbox is None else {}


def _environment(job: Job) -> dict[str, str]:
    defaults = {"PATH": _DEFAULT_PATH, "HOME": "/home", "LANG": "C.UTF-8"}
    return {**defaults, **job.env}


def _writable(place: str, limits: EffectiveLimits) -> dict[str, object]:
    return {
        "destination": place,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "nodev", "mode=1777", f"size={limits.disk_bytes}"],
    }
