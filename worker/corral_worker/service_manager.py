"""Tells the service manager how the worker is: systemd's sd_notify(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class ServiceManager:
    """Who started the worker, if it wants to know how it is.

    Args:
        environ: where ``NOTIFY_SOCKET`` may be; without it, nobody is told.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL byte of an abstract socket.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path

    def ready(self) -> None:
        """Tell that the worker has started."""
        self._tell("READY=1")

    def status(self, line: str) -> None:
        """Tell in one line how the worker is."""
        self._tell(f"STATUS={line}")

    def stopping(self) -> None:
        """Tell that the worker is about to end."""
        self._tell("STOPPING=1\nSTATUS=draining")

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        # One datagram that is dropped if nobody takes it: never a reason to wait or to fail.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
            there.setblocking(False)
            there.sendto(message.encode(), self._address)
