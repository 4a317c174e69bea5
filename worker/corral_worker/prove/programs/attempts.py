"""Shared by the programs of the attacks. Runs in the sandbox, on Python alone."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable

refused: dict[str, str] = {}
succeeded: dict[str, str] = {}
libc = ctypes.CDLL(None, use_errno=True)


def attempt(name: str, act: Callable[[], object]) -> None:
    """Do what must not work, and note whether it did.

    Only the kernel's own no counts as one: any other exception ends the program.
    """
    try:
        got = act()
    except OSError as error:
        refused[name] = f"{type(error).__name__}: {error}"[:200]
    else:
        succeeded[name] = repr(got)[:200]


def call(function: Callable[..., int], *arguments: object) -> int:
    """Call a function of the C library.

    Raises:
        OSError: it returned -1.
    """
    got = function(*arguments)
    if got == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got


def syscall(x86_64: int, aarch64: int, *arguments: object) -> int:
    """Make a system call by its number.

    Raises:
        OSError: the kernel refuses.
    """
    number = aarch64 if os.uname().machine == "aarch64" else x86_64
    return call(libc.syscall, number, *arguments)


def read(path: str) -> bytes:
    """Return the beginning of a file."""
    with open(path, "rb") as file:
        return file.read(4096)


def write(path: str, data: bytes) -> int:
    """Write to a file that is there."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        return os.write(descriptor, data)
    finally:
        os.close(descriptor)


def tell(**facts: object) -> None:
    """Print what came of the attempts, as one line."""
    print(json.dumps({"refused": refused, "succeeded": succeeded, "facts": facts}), flush=True)
