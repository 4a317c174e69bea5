"""Leaves its input unread for a while, and ends."""

from __future__ import annotations

import sys
import time

from corral_worker.prove.programs.attempts import tell

time.sleep(float(sys.argv[1]))
tell(waited=1)
