"""The command ``corral``: start :func:`main`."""

from __future__ import annotations

import sys
from importlib import import_module

_EXTRA = frozenset({"anyio", "click", "rich", "structlog"})


def main() -> None:
    """Run the command line of this process, and exit with its status."""
    try:
        # By name, for a base installation has none of what the commands need.
        import_module("corral_worker.cli.root").corral(prog_name="corral")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        sys.stderr.write(f"corral: the package {package} is missing: install corral[worker]\n")
        sys.exit(1)
