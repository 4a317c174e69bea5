"""Commands that find none of this machine's settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.fake_client import URL


@pytest.fixture(autouse=True)
def _environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("CORRAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CORRAL_REDIS_URL", URL)
    monkeypatch.setattr("corral_worker.settings.DEFAULT_FILE", tmp_path / "absent.toml")
