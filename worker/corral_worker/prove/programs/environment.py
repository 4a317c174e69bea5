"""Prints every environment and every command line it can see."""

from __future__ import annotations

import glob
import os

from corral_worker.prove.programs.attempts import tell

for kind in ("environ", "cmdline"):
    for path in glob.glob(f"/proc/[0-9]*/{kind}"):
        # Not its own arguments, which are megabytes of nothing new.
        if kind == "environ" or path != f"/proc/{os.getpid()}/cmdline":
            with open(path, "rb") as file:
                print(path, file.read())
print(os.environ)
tell(
    variables=len(os.environ),
    allowed=len(os.environ.keys() & {"PATH", "HOME", "LANG", "LC_CTYPE", "PYTHONHOME"}),
)
