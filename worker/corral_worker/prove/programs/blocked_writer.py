"""Writes much to standard error, and tells for how long one write was held up at most."""

from __future__ import annotations

import os
import sys
import time

from corral_worker.prove.programs.attempts import tell

rest = int(sys.argv[1])
longest = 0.0
while rest:
    began = time.monotonic()
    rest -= os.write(2, b"x" * min(rest, 1 << 16))
    longest = max(longest, time.monotonic() - began)
tell(longest_ms=int(longest * 1000))
