"""Tries to become root, and to have a capability."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

from corral_worker.prove.programs.attempts import attempt, call, libc, syscall, tell


def set_capabilities() -> int:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(*([0xFFFFFFFF] * 6))
    return syscall(126, 91, ctypes.byref(header), ctypes.byref(data))


def output(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise PermissionError(done.stderr.decode())
    return done.stdout.decode()


def run_set_user_id() -> str:
    for name in ("su", "passwd", "mount", "newgrp"):
        path = shutil.which(name, path="/usr/bin:/bin")
        if path and os.stat(path).st_mode & 0o4000:
            return output(path, "-c", "id")
    raise FileNotFoundError("no program that changes the user")


def make_set_user_id() -> str:
    shutil.copy("/bin/sh", "/workspace/sh")
    os.chmod("/workspace/sh", 0o6755)
    os.chown("/workspace/sh", 0, 0)
    return output("/workspace/sh", "-c", "id -u")


def capabilities() -> dict[str, str]:
    with open("/proc/self/status") as status:
        lines = dict(line.strip().split(":\t") for line in status if line.startswith("Cap"))
    found = {name: value for name, value in lines.items() if int(value, 16)}
    if not found:
        raise PermissionError("none")
    return found


def gain_by_exec() -> int:
    no_new_privileges = 39
    if call(libc.prctl, no_new_privileges, 0, 0, 0, 0) == 1:
        raise PermissionError("no new privileges")
    return 0


attempt("become root", lambda: os.setuid(0))
attempt("become root's group", lambda: os.setgid(0))
attempt("become root by saved ids", lambda: os.setresuid(0, 0, 0))
attempt("join groups", lambda: os.setgroups([0]))
attempt("have a capability", capabilities)
attempt("give itself capabilities", set_capabilities)
attempt("gain by exec", gain_by_exec)
attempt("run a program of root's", run_set_user_id)
attempt("make one", make_set_user_id)
attempt("own a file of another", lambda: os.chown("/workspace", 0, 0))
tell(user=os.getuid(), effective=os.geteuid())
