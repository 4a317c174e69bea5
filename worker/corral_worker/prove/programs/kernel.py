"""Tries one kind of what in a kernel has been a way out before; its argument says which."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import sys
from functools import partial

from corral_worker.prove.programs.attempts import attempt, call, libc, syscall, tell


def bpf() -> None:
    attributes = ctypes.create_string_buffer(128)
    attempt("load a program", lambda: syscall(321, 280, 5, attributes, 128))
    small_array = b"".join(number.to_bytes(4, "little") for number in (2, 4, 4, 1))
    attributes = ctypes.create_string_buffer(small_array, 128)
    attempt("make a map", lambda: syscall(321, 280, 0, attributes, 128))


def perf() -> None:
    for kind, name in enumerate(("cycles", "faults", "trace points")):
        size = (112).to_bytes(4, "little")
        attributes = ctypes.create_string_buffer(kind.to_bytes(4, "little") + size, 112)
        attempt(f"count {name}", partial(syscall, 298, 241, attributes, 0, -1, -1, 0))


def devices() -> None:
    for name in ("kvm", "vhost-vsock", "vhost-net", "mem", "port", "sda", "vda", "loop-control"):
        attempt(f"open /dev/{name}", partial(os.open, f"/dev/{name}", os.O_RDWR))
    attempt("make a tunnel", _make_tunnel)
    attempt("serve files", _serve_files)


def _make_tunnel() -> None:
    # gVisor's own device may be opened; to have an interface of it takes a capability.
    tunnel = os.open("/dev/net/tun", os.O_RDWR)
    set_interface, interface = 0x400454CA, b"tun0".ljust(16, b"\0") + b"\1".ljust(24, b"\0")
    fcntl.ioctl(tunnel, set_interface, interface)


def _serve_files() -> int:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    return call(libc.mount, b"fuse", b"/workspace", b"fuse", 0, options)


def sockets() -> None:
    kinds = {
        "a raw one": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "a raw one of IPv6": (socket.AF_INET6, socket.SOCK_RAW, 58),
        "one for packets": (socket.AF_PACKET, socket.SOCK_RAW, 0x300),
        "one to the hypervisor": (socket.AF_VSOCK, socket.SOCK_STREAM, 0),
        "one for ciphers": (socket.AF_ALG, socket.SOCK_SEQPACKET, 0),
    }
    for name, arguments in kinds.items():
        attempt(f"open {name}", partial(socket.socket, *arguments))


def calls() -> None:
    attempt("load a module", lambda: syscall(175, 105, b"x", 1, b""))
    attempt("load a module by descriptor", lambda: syscall(313, 273, 0, b"", 0))
    attempt("load another kernel", lambda: syscall(246, 104, 0, 0, None, 0))
    attempt("reboot", lambda: syscall(169, 142, 0xFEE1DEAD, 672274793, 0x1234567, None))
    attempt("turn swap on", lambda: call(libc.swapon, b"/workspace", 0))
    attempt("account", lambda: call(libc.acct, b"/workspace/a"))
    handle = ctypes.create_string_buffer(64)
    attempt("open by handle", lambda: syscall(304, 265, -100, handle, 0))
    attempt("handle page faults", lambda: syscall(323, 282, 0))
    attempt("use io_uring", lambda: syscall(425, 425, 4, ctypes.create_string_buffer(120)))
    attempt("map the first page", _map_first_page)
    attempt("watch the file system", lambda: syscall(300, 262, 0, 0))
    attempt("add a key", lambda: syscall(248, 217, b"user", b"k", b"v", 1, -5))
    attempt("use ports", lambda: syscall(172, -1, 3))
    attempt("change its personality", lambda: call(libc.personality, 0x0400000))


def _map_first_page() -> int:
    libc.mmap.restype = ctypes.c_ssize_t
    fixed, private = 0x10, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return call(libc.mmap, None, 4096, mmap.PROT_READ, private | fixed, -1, 0)


{"bpf": bpf, "perf": perf, "devices": devices, "sockets": sockets, "calls": calls}[sys.argv[1]]()
tell()
