"""What the version 2 machine is told to run."""

from __future__ import annotations

import runpy
from pathlib import Path

TESTS = Path(__file__).parents[1]
SELECTED: tuple[str, ...] = runpy.run_path(str(TESTS / "v2" / "selection.py"))["RUN"]


def exists(name: str) -> bool:
    file, _, test = name.partition("::")
    path = TESTS.parent / file
    return path.is_file() and (not test or f"def {test}(" in path.read_text())


def test_every_test_that_is_selected_exists() -> None:
    # pytest runs none at all if one is missing, and takes minutes to say so there.
    assert [name for name in SELECTED if not exists(name)] == []
