"""Tries to trace, read and write processes that are not its own."""

from __future__ import annotations

import ctypes
import os
import sys

from corral_worker.prove.programs.attempts import attempt, call, libc, read, syscall, tell, write

victim = int(sys.argv[1])
room = ctypes.create_string_buffer(64)
vector = (ctypes.c_size_t * 2)(ctypes.addressof(room), 64)


def trace(request: int, pid: int) -> int:
    return call(libc.ptrace, request, pid, None, None)


def move(x86_64: int, aarch64: int, pid: int) -> int:
    there = ctypes.byref(vector)
    return syscall(x86_64, aarch64, pid, there, 1, there, 1, 0)


attempt("attach to it", lambda: trace(16, victim))
attempt("seize it", lambda: trace(0x4206, victim))
attempt("read it", lambda: move(310, 270, victim))
attempt("write it", lambda: move(311, 271, victim))
attempt("read its memory's file", lambda: read(f"/proc/{victim}/mem"))
attempt("write its memory's file", lambda: write(f"/proc/{victim}/mem", b"x"))
attempt("read its registers", lambda: read(f"/proc/{victim}/syscall"))
attempt("trace itself", lambda: trace(16, os.getpid()))
attempt("compare it with itself", lambda: syscall(312, 272, victim, os.getpid(), 0, 0, 0))
attempt("take a file of it", lambda: syscall(438, 438, 0, 0, 0))
tell()
