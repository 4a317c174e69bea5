"""Jobs from the programs in the package's directory ``programs``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from corral import Job, Limits

_PACKAGE = "corral_worker.prove.programs"
# The sandbox has none of corral's files: the programs come as arguments, and what
# they import of each other becomes a module first.
_START = f"""\
import sys, types
shared = types.ModuleType("{_PACKAGE}.attempts")
exec(compile(sys.argv[1], "attempts", "exec"), shared.__dict__)
sys.modules[shared.__name__] = shared
program = sys.argv[2]
del sys.argv[:2]
exec(compile(program, "attack", "exec"), {{"__name__": "__main__"}})
"""


def python(
    program: str,
    *arguments: str,
    limits: Limits,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
) -> Job:
    """Return the job that runs a program, named without its ending."""
    sources = (_text("attempts"), _text(program))
    return Job(
        argv=("python3", "-c", _START, *sources, *arguments),
        limits=limits,
        stdin=stdin,
        env=dict(env or {}),
    )


def _text(program: str) -> str:
    return (files("corral_worker.prove") / "programs" / f"{program}.py").read_text("utf-8")
