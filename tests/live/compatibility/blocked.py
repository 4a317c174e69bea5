"""Tries what its argument names, and prints the error that comes of it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

INTEL = os.uname().machine == "x86_64"
NOWHERE = ("192.0.2.1", 53)
NEW_MOUNTS, NEW_NETWORK = 0x20000, 0x40000000
AT_FDCWD, RENAME_EXCHANGE, PTRACE_ATTACH = -100, 2, 16
TUNSETIFF = 0x400454CA

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def call(number_on_intel: int, number_on_arm: int, *arguments: object) -> None:
    """Make a system call that the C library has no function for."""
    checked(libc.syscall(number_on_intel if INTEL else number_on_arm, *arguments))


def a_copy(path: str, place: str, mode: int) -> str:
    copied = Path(place, "copy")
    shutil.copyfile(path, copied)
    copied.chmod(mode)
    return str(copied)


def attach_to_the_parent() -> None:
    if (child := os.fork()) == 0:
        try:
            checked(libc.ptrace(PTRACE_ATTACH, os.getppid(), None, None))
        except OSError as error:
            os._exit(error.errno or 0)
        os._exit(0)
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number:
        raise OSError(number, os.strerror(number))


def run_a_setuid_program() -> None:
    programs = subprocess.run(
        ["find", "/usr/bin", "/usr/sbin", "-type", "f", "-perm", "/6000"],
        stdout=subprocess.PIPE,
        check=True,
    )
    if not programs.stdout:
        raise FileNotFoundError(errno.ENOENT, "the image has none")
    os.execv(programs.stdout.split()[0], ["program"])


def lock_memory() -> None:
    size = 2**20
    address = ctypes.addressof(ctypes.c_char.from_buffer(mmap.mmap(-1, size)))
    checked(libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)))


def make_a_network_device() -> None:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"tun0", 1))


def open_a_block_device() -> None:
    os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))
    os.open("/tmp/disk", os.O_RDONLY)


def resolve_a_name() -> None:
    try:
        socket.getaddrinfo("example.org", 80)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise OSError(errno.EAGAIN, "no name server answers") from error
        raise


def swap_names() -> None:
    Path("one").touch()
    Path("other").touch()
    call(316, 276, AT_FDCWD, b"one", AT_FDCWD, b"other", RENAME_EXCHANGE)


def udp(address: tuple[str, int]) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", address)


def copy_in_the_kernel() -> None:
    source = os.open("/etc/passwd", os.O_RDONLY)
    os.copy_file_range(source, os.open("target", os.O_CREAT | os.O_RDWR), 1)


PERF_EVENT = struct.pack("II104x", 0, 112)  # of the processor's cycles
FILE_HANDLE = struct.pack("Ii128x", 128, 0)

ATTEMPTS: dict[str, Callable[[], object]] = {
    "tcp to the outside": lambda: socket.create_connection(NOWHERE, timeout=60),
    "udp to the outside": lambda: udp(NOWHERE),
    "tcp to cloud metadata": lambda: socket.create_connection(("169.254.169.254", 80), timeout=60),
    "dns": resolve_a_name,
    "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "network device": make_a_network_device,
    "mount": lambda: checked(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None)),
    "umount": lambda: checked(libc.umount2(b"/tmp", 0)),
    "pivot_root": lambda: call(155, 41, b"/tmp", b"/tmp"),
    "chroot": lambda: os.chroot("/tmp"),
    "mount namespace": lambda: checked(libc.unshare(NEW_MOUNTS)),
    "network namespace": lambda: checked(libc.unshare(NEW_NETWORK)),
    "setuid": lambda: os.setuid(0),
    "setgroups": lambda: os.setgroups([0]),
    "setuid program": run_a_setuid_program,
    "chown": lambda: os.chown("/workspace", os.getuid(), os.getgid()),
    "ptrace of the parent": attach_to_the_parent,
    "physical memory": lambda: os.open("/dev/mem", os.O_RDWR),
    "block device": open_a_block_device,
    "kvm": lambda: os.open("/dev/kvm", os.O_RDWR),
    "clock_settime": lambda: time.clock_settime(time.CLOCK_REALTIME, 0),
    "sethostname": lambda: checked(libc.sethostname(b"other", 5)),
    "reboot": lambda: checked(libc.reboot(0x01234567)),
    "swapon": lambda: checked(libc.swapon(b"/tmp/file", 0)),
    "kexec": lambda: call(246, 104, 0, 0, None, 0),
    "kernel module": lambda: call(175, 105, b"", 0, b""),
    "sysctl": lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"),
    "sysrq": lambda: Path("/proc/sysrq-trigger").write_text("b"),
    "bpf": lambda: call(321, 280, 0, None, 0),
    "perf_event_open": lambda: call(298, 241, PERF_EVENT, 0, -1, -1, 0),
    "io_uring": lambda: call(425, 425, 4, bytes(120)),
    "userfaultfd": lambda: call(323, 282, 0),
    "fanotify": lambda: checked(libc.fanotify_init(0, 0)),
    "open by handle": lambda: call(304, 265, AT_FDCWD, FILE_HANDLE, 0),
    "root file system": lambda: Path("/usr/file").touch(),
    "program in shared memory": lambda: os.execv(a_copy("/bin/true", "/dev/shm", 0o755), ["true"]),
    "mlock": lock_memory,
    "pidfd": lambda: call(434, 434, os.getpid(), 0),
    "unnamed file": lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR),
    "copy_file_range": copy_in_the_kernel,
    "rename exchange": swap_names,
    "landlock": lambda: call(444, 444, None, 0, 1),
}

try:
    ATTEMPTS[sys.argv[1]]()
    answer = "done"
except OSError as error:
    answer = errno.errorcode[error.errno or 0]
sys.stdout.write(f"{answer}\n")
