"""The image that a sandbox waits in: one program, which does nothing.

A sandbox lives as long as its first program, so there has to be one until the job's own is
started. It lies in an image of its own, for a job's image need not hold anything suitable, and
then all images can be run in the same waiting sandbox. No compiler is needed on the host: the
program is a few instructions.
"""

from __future__ import annotations

import platform
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from corral_worker.images.erofs import pack
from corral_worker.images.errors import ImageBuildError
from corral_worker.process.thread import in_thread
from corral_worker.sandbox.bundle import WRITABLE

PAUSE = ("/corral",)
"""What waits for ever."""
HELLO = ("/corral", "hello")
"""The same program, given an argument: it says so and ends."""
HELLO_OUTPUT = b"corral\n"
HELLO_WAIT_STATUS = 7 << 8

_BASE = 0x400000
_HEADERS = 64 + 56
# Each looks at argc on the stack. Alone, it pauses again and again; else it does
# write(1, "corral\n", 7) and exit_group(7).
_X86_64 = bytes.fromhex(
    "48833c2401"  # cmp qword [rsp], 1
    "7709"  # ja hello
    "b822000000 0f05"  # pause: mov eax, SYS_pause; syscall
    "ebf7"  # jmp pause
    "b801000000 bf01000000"  # hello: mov eax, SYS_write; mov edi, 1
    "488d3513000000 ba07000000 0f05"  # lea rsi, [rip + text]; mov edx, 7; syscall
    "b8e7000000 bf07000000 0f05"  # mov eax, SYS_exit_group; mov edi, 7; syscall
)
_AARCH64 = struct.pack(
    "<19I",
    0xF94003E0,  # ldr x0, [sp]
    0xF100041F,  # cmp x0, #1
    0x54000128,  # b.hi hello
    0xD2800000,  # pause: mov x0, #0
    0xD2800001,  # mov x1, #0
    0xD2800002,  # mov x2, #0
    0xD2800003,  # mov x3, #0
    0xD2800004,  # mov x4, #0
    0xD2800928,  # mov x8, SYS_ppoll
    0xD4000001,  # svc #0
    0x17FFFFF9,  # b pause
    0xD2800020,  # hello: mov x0, #1
    0x100000E1,  # adr x1, text
    0xD28000E2,  # mov x2, #7
    0xD2800808,  # mov x8, SYS_write
    0xD4000001,  # svc #0
    0xD28000E0,  # mov x0, #7
    0xD2800BC8,  # mov x8, SYS_exit_group
    0xD4000001,  # svc #0
)
_MACHINES: Mapping[str, tuple[int, bytes]] = MappingProxyType(
    {"x86_64": (62, _X86_64), "aarch64": (183, _AARCH64)}
)
"""ELF's number of the machine, and the instructions."""


async def build_pause_image(target: Path) -> None:
    """Write the image to the new file ``target``.

    Raises:
        ImageBuildError: this host's machine is unknown, or mkfs.erofs is missing or fails.
        OSError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="pause-") as name:
        tree = Path(name)
        await in_thread(_write_tree, tree, pause_program(platform.machine()))
        await pack(tree, target)


def pause_program(machine: str) -> bytes:
    """Return the program as an ELF file.

    Raises:
        ImageBuildError: there are no instructions for this machine.
    """
    if machine not in _MACHINES:
        raise ImageBuildError(f"there is no pause program for {machine}")
    number, instructions = _MACHINES[machine]
    content = instructions + HELLO_OUTPUT
    size = _HEADERS + len(content)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, number, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + content


def _write_tree(tree: Path, program: bytes) -> None:
    tree.chmod(0o755)
    # The root is read-only: what is mounted needs a place.
    for place in ("/proc", "/dev", "/sys", *WRITABLE):
        (tree / place.lstrip("/")).mkdir(parents=True, mode=0o755)
    file = tree / PAUSE[0].lstrip("/")
    file.write_bytes(program)
    file.chmod(0o755)
