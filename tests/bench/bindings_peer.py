"""Runs the commands on its standard input by Google's bindings, and prints the seconds of each.

Its interpreter has nothing but the bindings.
"""

from __future__ import annotations

import importlib
import os
import sys
import time


def main() -> None:
    # Nothing that the project itself depends on.
    bindings = importlib.import_module("gvisor")
    # runsc, given a pipe as standard input, makes it non-blocking, for all who have it: we would
    # take it for the end of the commands that the next one is not there yet.
    commands = os.fdopen(os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for line in commands:
        program, *arguments = line.split()
        began = time.monotonic()
        seen = float("nan")
        try:
            with bindings.Sandbox() as sandbox:
                sandbox.exec(program, *arguments)
                seen = time.monotonic()
        except bindings.Error as error:
            sys.stderr.write(f"{line.strip()}: {error}\n")
            seen = float("nan")
        sys.stdout.write(f"{seen - began} {time.monotonic() - began}\n")
        sys.stdout.flush()


main()
