"""Kills itself as the kernel would for want of memory."""

from __future__ import annotations

import os
import signal

os.kill(os.getpid(), signal.SIGKILL)
