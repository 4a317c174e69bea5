"""Tries to set the clock."""

from __future__ import annotations

import ctypes
import time

from corral_worker.prove.programs.attempts import attempt, call, libc, syscall, tell

before = time.time()
past = (ctypes.c_long * 2)(1_000_000, 0)
attempt("set the time", lambda: call(libc.settimeofday, ctypes.byref(past), None))
attempt("set the clock", lambda: time.clock_settime(time.CLOCK_REALTIME, 1_000_000))
attempt("set the steady clock", lambda: time.clock_settime(time.CLOCK_MONOTONIC, 1))
attempt("step the clock", lambda: syscall(159, 171, (ctypes.c_uint32 * 64)(0x8000)))
attempt("step it by name", lambda: syscall(305, 266, 0, (ctypes.c_uint32 * 64)(0x8000)))
tell(moved=int(abs(time.time() - before)))
