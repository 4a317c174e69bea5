"""Writes to and reads from what a kernel shows of itself."""

from __future__ import annotations

import os
import resource
from functools import partial

from corral_worker.prove.programs.attempts import attempt, call, libc, read, tell, write

WRITES = {
    "/proc/sys/kernel/core_pattern": b"|/bin/sh",
    "/proc/sys/kernel/hostname": b"other",
    "/proc/sys/kernel/panic": b"1",
    "/proc/sys/kernel/modprobe": b"/bin/sh",
    "/proc/sys/kernel/yama/ptrace_scope": b"0",
    "/proc/sys/vm/overcommit_memory": b"1",
    "/proc/sys/vm/drop_caches": b"3",
    "/proc/sys/fs/file-max": b"1",
    "/proc/sys/net/ipv4/ip_forward": b"1",
    "/proc/sysrq-trigger": b"c",
    "/proc/self/uid_map": b"0 0 1",
    "/proc/self/attr/current": b"unconfined",
    "/proc/irq/0/smp_affinity": b"1",
    "/sys/kernel/mm/transparent_hugepage/enabled": b"never",
    "/sys/power/state": b"mem",
    "/sys/fs/cgroup/cgroup.procs": b"0",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": b"-1",
}
READS = (
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/kallsyms",
    "/proc/config.gz",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi/scsi",
    "/proc/partitions",
    "/proc/diskstats",
    "/sys/firmware/acpi/tables/DSDT",
    "/sys/kernel/debug/sched/features",
    "/sys/kernel/security/lsm",
    "/sys/class/dmi/id/product_uuid",
    "/dev/mem",
    "/dev/kmsg",
    "/dev/port",
)


def raise_limits() -> None:
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):
        try:
            resource.setrlimit(kind, (1 << 20, 1 << 20))
        except ValueError as error:  # that is how Python words EPERM here
            raise PermissionError(str(error)) from error


for path, data in WRITES.items():
    attempt(f"write {path}", partial(write, path, data))
for path in READS:
    attempt(f"read {path}", partial(read, path))
attempt("raise its limits", raise_limits)
attempt("set its host's name", lambda: call(libc.sethostname, b"other", 5))
tell(kernel=os.uname().release)
