"""Exits as a shell tells of a process that was killed."""

from __future__ import annotations

import sys

sys.exit(137)
