"""System V shared memory, semaphores and message queues between two processes."""

from __future__ import annotations

import ctypes
import os

IPC_PRIVATE, IPC_RMID, MODE = 0, 0, 0o1600


class Message(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_long), ("text", ctypes.c_char * 4)]


class Operation(ctypes.Structure):
    _fields_ = [
        ("number", ctypes.c_ushort),
        ("change", ctypes.c_short),
        ("flags", ctypes.c_short),
    ]


libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmdt.argtypes = [ctypes.c_void_p]
memory = libc.shmget(IPC_PRIVATE, 4096, MODE)
semaphore = libc.semget(IPC_PRIVATE, 1, MODE)
queue = libc.msgget(IPC_PRIVATE, MODE)
assert min(memory, semaphore, queue) >= 0
address = libc.shmat(memory, None, 0)

if (child := os.fork()) == 0:
    ctypes.memmove(address, b"shared", 6)
    libc.msgsnd(queue, ctypes.byref(Message(1, b"sent")), 4, 0)
    libc.semop(semaphore, ctypes.byref(Operation(0, 1, 0)), 1)
    os._exit(0)
assert libc.semop(semaphore, ctypes.byref(Operation(0, -1, 0)), 1) == 0
assert ctypes.string_at(address, 6) == b"shared"
received = Message()
assert libc.msgrcv(queue, ctypes.byref(received), 4, 0, 0) == 4
assert received.text == b"sent"
os.waitpid(child, 0)
assert libc.shmdt(address) == 0
assert libc.shmctl(memory, IPC_RMID, None) == 0
