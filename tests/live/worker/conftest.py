"""Workers as an operator runs them, and their callers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.workers import RunningWorker, running_worker, unified_parent

from corral_worker.secret import Secret
from corral_worker.settings import Settings


@pytest.fixture(scope="session")
def base_image_dir() -> Path:
    """The host's own images; ``base`` is built if it is not among them."""
    images = Settings(redis_url=Secret("")).images
    build = [sys.executable, "-m", "corral_worker", "images", "build", "--missing", "base"]
    subprocess.run(build, check=True)
    return images


@pytest.fixture
def environ(redis_url: str, state_dir: Path, base_image_dir: Path) -> Iterator[dict[str, str]]:
    environ = {
        "PATH": os.environ["PATH"],
        "CORRAL_REDIS_URL": redis_url,
        "CORRAL_STATE_DIR": str(state_dir),
        "CORRAL_IMAGE_DIR": str(base_image_dir),
        "CORRAL_CGROUP_PARENT": f"/corral-worker-test-{os.getpid()}",
        "CORRAL_LOG_FORMAT": "json",
        "SECRET_OF_THE_HOST": "do-not-leak",
    }
    yield environ
    with suppress(FileNotFoundError):
        unified_parent(environ).rmdir()


@pytest.fixture
def _cold(environ: dict[str, str]) -> None:
    """Have no sandbox wait: all that runs is a job's, and is seen to run."""
    environ["CORRAL_WARM_SANDBOXES"] = "0"


@pytest.fixture
async def worker(environ: dict[str, str]) -> AsyncIterator[RunningWorker]:
    async with running_worker(environ) as worker:
        yield worker
