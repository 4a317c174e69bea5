"""A program's file in memory, in huge pages."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

# The same on all machines but alpha: include/uapi/asm-generic/unistd.h.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC = 1
_SET_STRING, _CMD_CREATE = 1, 6
_NOSUID_NODEV = 2 | 4
_ELF = b"\x7fELF"
_OPTIONS = ((b"huge", b"always"), (b"mode", b"0755"))


@contextmanager
def in_huge_pages(program: Path) -> Iterator[Path | None]:
    """Give the path of a copy of a program that lies in memory, in huge pages.

    A program of 30 MB takes thousands of page faults each time it starts, and each costs about
    as much as a system call. In huge pages the kernel maps 2 MiB by one of them.

    The copy is in a file system of its own that is mounted nowhere: only this process and its
    children reach it, nobody can replace it, and it ends with this block or with this process,
    however that ends. None is given where it cannot be had: on a kernel that has no
    ``fsmount(2)`` or no huge pages, to a process that may not mount, and of a script, to
    which its own path matters.
    """
    with ExitStack() as files:
        copy: Path | None = None
        with suppress(OSError):
            copy = _copy(program, files)
        yield copy


def _copy(program: Path, files: ExitStack) -> Path | None:
    with program.open("rb") as original:
        if original.read(len(_ELF)) != _ELF:
            return None
        root = _file_system()
        files.callback(os.close, root)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        target = os.open(program.name, flags, 0o555, dir_fd=root)
        try:
            done = 0
            while sent := os.sendfile(target, original.fileno(), done, 1 << 30):
                done += sent
        finally:
            # What is open for writing cannot be executed.
            os.close(target)
    copy = Path(f"/proc/{os.getpid()}/fd/{root}") / program.name
    return copy if os.access(copy, os.X_OK) else None


def _file_system() -> int:
    """Return a descriptor of the root of a new tmpfs. See Documentation/filesystems/tmpfs.rst."""
    context = _call(_FSOPEN, b"tmpfs", _CLOEXEC)
    try:
        for name, value in _OPTIONS:
            _call(_FSCONFIG, context, _SET_STRING, name, value, 0)
        _call(_FSCONFIG, context, _CMD_CREATE, None, None, 0)
        return _call(_FSMOUNT, context, _CLOEXEC, _NOSUID_NODEV)
    finally:
        os.close(context)


def _call(number: int, *arguments: bytes | int | None) -> int:
    # No wrapper in glibc before 2.36.
    answer: int = ctypes.CDLL(None, use_errno=True).syscall(
        ctypes.c_long(number),
        *(
            ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_char_p(argument)
            for argument in arguments
        ),
    )
    if answer < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return answer
