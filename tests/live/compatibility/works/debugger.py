"""A program traces a child of its own, as gdb and strace do."""

from __future__ import annotations

import ctypes
import os
import signal

TRACEME, PEEKDATA, CONTINUE = 0, 2, 7

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long

secret = ctypes.c_long(0x5EC12E7)
if (child := os.fork()) == 0:
    secret.value += 1
    libc.ptrace(TRACEME, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(7)
assert os.WIFSTOPPED(os.waitpid(child, 0)[1])
assert libc.ptrace(PEEKDATA, child, ctypes.addressof(secret), None) == secret.value + 1
assert libc.ptrace(CONTINUE, child, None, None) == 0
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
