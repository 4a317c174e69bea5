"""A runsc that does what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from corral_worker.sandbox.runsc import Runsc

FAKE = Path(__file__).parents[1] / "fakes" / "runsc"


@pytest.fixture
def runsc(tmp_path: Path) -> Runsc:
    """The client of the fake."""
    root = tmp_path / "r"
    (root / "fake").mkdir(parents=True)
    return Runsc(binary=FAKE, root=root, platform="systrap")


@pytest.fixture
def script(runsc: Runsc) -> Callable[[str, str], None]:
    """Say what the fake does for a verb, as shell script."""

    def write(verb: str, text: str) -> None:
        (runsc.root / "fake" / verb).write_text(text)

    return write


@pytest.fixture
def verbs(runsc: Runsc) -> Callable[[], list[str]]:
    """Tell which verbs the fake was called with so far."""

    def read() -> list[str]:
        return (runsc.root / "fake" / "verbs").read_text().split()

    return read


@pytest.fixture
def argv(runsc: Runsc) -> Callable[[str], list[str]]:
    """Tell the arguments of the last call of a verb."""

    def read(verb: str) -> list[str]:
        return (runsc.root / "fake" / f"argv.{verb}").read_text().splitlines()

    return read
