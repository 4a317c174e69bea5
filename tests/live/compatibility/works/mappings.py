"""mmap: anonymous, private and shared, of files, between processes, and made executable."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from pathlib import Path

PAGE = mmap.PAGESIZE

file = Path("file")
file.write_bytes(b"a" * 2 * PAGE)
with file.open("r+b") as opened:
    with mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE) as private:
        private[0:1] = b"b"
    assert file.read_bytes()[0:1] == b"a"
    with mmap.mmap(opened.fileno(), 0, mmap.MAP_SHARED) as shared:
        shared[PAGE : PAGE + 1] = b"c"
        shared.flush()
        assert os.pread(opened.fileno(), 1, PAGE) == b"c"
        shared.resize(4 * PAGE)
        shared.madvise(mmap.MADV_DONTNEED)
        assert len(shared) == 4 * PAGE

between = mmap.mmap(-1, PAGE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
if (child := os.fork()) == 0:
    between[0:5] = b"child"
    os._exit(0)
os.waitpid(child, 0)
assert between[0:5] == b"child"

memory = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
os.ftruncate(memory, PAGE)
with mmap.mmap(memory, PAGE) as mapped:
    mapped[0:4] = b"memo"
assert os.pread(memory, 4, 0) == b"memo"

# What a just-in-time compiler does: return 42.
code = {
    "x86_64": bytes.fromhex("b82a000000c3"),
    "aarch64": bytes.fromhex("40058052c0035fd6"),
}[platform.machine()]
executable = mmap.mmap(
    -1, PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
)
executable.write(code)
address = ctypes.addressof(ctypes.c_char.from_buffer(executable))
assert ctypes.CFUNCTYPE(ctypes.c_int)(address)() == 42
