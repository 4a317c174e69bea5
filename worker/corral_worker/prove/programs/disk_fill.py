"""Writes to the first place it may write to until that is full."""

from __future__ import annotations

import errno

from corral_worker.prove.programs.attempts import tell

written = 0
reason = 0
with open("/workspace/fill", "wb", buffering=0) as file:
    try:
        while True:
            written += file.write(b"\1" * (1 << 16))
    except OSError as error:
        reason = error.errno or 0
tell(written=written, no_space=int(reason == errno.ENOSPC))
