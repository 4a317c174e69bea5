"""Tries to change what is mounted where."""

from __future__ import annotations

import os
import stat

from corral_worker.prove.programs.attempts import attempt, call, libc, syscall, tell

BIND, REMOUNT = 0x1000, 0x20


def mount(source: bytes, target: bytes, kind: bytes, flags: int = 0) -> int:
    return call(libc.mount, source, target, kind, flags, None)


def device(kind: int, major: int, minor: int) -> bytes:
    name = f"/workspace/{major}-{minor}"
    os.mknod(name, kind | 0o600, os.makedev(major, minor))
    with open(name, "rb") as opened:
        return opened.read(16)


def root_elsewhere() -> int:
    call(libc.unshare, 0x10000000)  # CLONE_NEWUSER
    return mount(b"tmpfs", b"/workspace", b"tmpfs")


def replace(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"changed")


attempt("mount tmpfs", lambda: mount(b"tmpfs", b"/workspace", b"tmpfs"))
attempt("mount proc", lambda: mount(b"proc", b"/workspace", b"proc"))
attempt("mount cgroups", lambda: mount(b"cgroup", b"/workspace", b"cgroup2"))
attempt("mount a disk", lambda: mount(b"/dev/vda", b"/workspace", b"ext4"))
attempt("bind the root", lambda: mount(b"/", b"/workspace", b"", BIND))
attempt("make the root writable", lambda: mount(b"/", b"/", b"", REMOUNT))
attempt("unmount tmp", lambda: call(libc.umount2, b"/tmp", 2))
attempt("unmount proc", lambda: call(libc.umount2, b"/proc", 2))
attempt("change its root", lambda: os.chroot("/workspace"))
attempt("pivot its root", lambda: syscall(155, 41, b"/workspace", b"/workspace"))
attempt("join the first namespace", lambda: call(libc.setns, os.open("/proc/1/ns/mnt", 0), 0))
attempt("be root in a namespace of its own", root_elsewhere)
attempt("make a disk", lambda: device(stat.S_IFBLK, 8, 0))
attempt("make the memory's device", lambda: device(stat.S_IFCHR, 1, 1))
attempt("change a program of the image", lambda: replace("/usr/bin/env"))
attempt("add to the image", lambda: replace("/etc/new"))
attempt("remove from the image", lambda: os.unlink("/etc/passwd"))
tell()
