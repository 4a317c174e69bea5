"""Tries to leave the sandbox's file system by symlinks, dots, descriptors and proc."""

from __future__ import annotations

import os
import sys

from corral_worker.prove.programs.attempts import attempt, read, tell, write

directory = sys.argv[1]
up = "../" * 40


def by_symlink() -> bytes:
    os.symlink(f"{directory}/secret", "/workspace/link")
    return read("/workspace/link")


def by_symlink_to_root() -> bytes:
    os.symlink("/", "/workspace/root")
    return read(f"/workspace/root/{up}{directory}/secret")


def by_loop() -> bytes:
    os.symlink("/workspace/loop", "/workspace/loop")
    return read("/workspace/loop")


def by_hard_link() -> None:
    os.link(f"{directory}/secret", "/workspace/hard")


def by_descriptor() -> bytes:
    for number in os.listdir("/proc/self/fd"):
        try:
            return read(f"/proc/self/fd/{number}/{up}{directory}/secret")
        except OSError:
            continue
    raise FileNotFoundError(directory)


def by_directory_above() -> list[str]:
    os.chdir("/")
    for _ in range(40):
        os.chdir("..")
    return os.listdir(directory)


attempt("read it", lambda: read(f"{directory}/secret"))
attempt("read it by dots", lambda: read(f"/workspace/{up}{directory}/secret"))
attempt("read it by a symlink", by_symlink)
attempt("read it by a symlink to the root", by_symlink_to_root)
attempt("follow a loop", by_loop)
attempt("link to it", by_hard_link)
attempt("read it by a descriptor", by_descriptor)
attempt("read it by proc's root", lambda: read(f"/proc/1/root/{directory}/secret"))
attempt("read it by proc's directory", lambda: read(f"/proc/self/cwd/{up}{directory}/secret"))
attempt("list its directory from above", by_directory_above)
attempt("change it", lambda: write(f"{directory}/secret", b"changed"))
attempt("delete it", lambda: os.unlink(f"{directory}/secret"))
attempt("move it", lambda: os.rename(f"{directory}/secret", "/workspace/secret"))
attempt("run it", lambda: os.execv(f"{directory}/program", ["program"]))
tell()
