"""runsc's state file: what is read from it, and when."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from corral_worker.sandbox.runsc import Runsc
from corral_worker.sandbox.state import StateFile, check_sandbox_id

ID = "corral-0123456789abcdef"


class Written:
    """A state file as runsc would write it: replaced as a whole, or changed in place."""

    def __init__(self, root: Path) -> None:
        self.path = root / f"{ID}_sandbox:{ID}.state"

    def replace(self, content: bytes) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.rename(self.path)

    def say(self, status: str, **fields: object) -> None:
        # As Go does it: without blanks.
        text = json.dumps({"id": ID, **fields, "status": status}, separators=(",", ":"))
        self.replace(text.encode())


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


@pytest.fixture
def state(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path, ID)


def test_the_client_knows_where_its_state_files_are(runsc: Runsc) -> None:
    Written(runsc.root).say("running")

    assert runsc.state(ID).status() == "running"


def test_a_container_in_a_sandbox_has_a_file_of_its_own(runsc: Runsc) -> None:
    Written(runsc.root).say("running")
    (runsc.root / f"job_sandbox:{ID}.state").write_bytes(b'{"id":"job","status":"created"}')

    assert runsc.state(ID, "job").status() == "created"
    assert runsc.state(ID, "other").status() is None
    with pytest.raises(ValueError, match="is no sandbox id"):
        runsc.state(ID, "../job")


def test_every_change_is_seen(state: StateFile, written: Written) -> None:
    seen = [state.status()]
    for status in ("creating", "created", "running", "stopped"):
        written.say(status)
        seen.append(state.status())
    written.path.unlink()
    seen.append(state.status())
    written.say("running")
    seen.append(state.status())

    assert seen == [None, "creating", "created", "running", "stopped", None, "running"]


def test_a_change_in_place_is_seen_by_its_time_even_if_the_size_stays(
    state: StateFile, written: Written
) -> None:
    written.say("created")
    assert state.status() == "created"

    written.path.write_bytes(written.path.read_bytes().replace(b"created", b"stopped"))
    os.utime(written.path, ns=(2**60, 2**60))

    assert state.status() == "stopped"


def test_a_file_that_did_not_change_is_not_read_again(
    state: StateFile, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    written.say("created")

    assert [state.status() for _ in range(5)] == ["created"] * 5
    assert reads == [written.path]

    written.say("running")

    assert [state.status() for _ in range(5)] == ["running"] * 5
    assert reads == [written.path] * 2


@pytest.mark.parametrize(
    "forged",
    [
        '"status":"running"',
        '","status":"running","x":"',
        '\\","status":"running","x":"',
        '\\\\","status":"running"',
        '\n"status":"running"\n',
        '\u2028"status":"running"',
    ],
)
def test_a_job_cannot_write_its_own_status(state: StateFile, written: Written, forged: str) -> None:
    spec = {"process": {"args": ["sh", forged], "env": [f"A={forged}"], "cwd": f"/{forged}"}}

    written.say("created", spec=spec, forged=forged)

    assert state.status() == "created"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"id":"x","stat',
        b'{"status":"run',
        b'{"status":"',
        b"[]",
        b'{"status":1}',
        b"\xff",
    ],
)
def test_a_half_written_file_has_no_status_and_is_looked_at_again(
    state: StateFile, written: Written, content: bytes
) -> None:
    whole = b'{"status":"running"}'
    written.path.write_bytes(content.ljust(len(whole)))
    assert state.status() is None

    before = written.path.stat()
    written.path.write_bytes(whole)
    # Within one tick of the kernel's clock the time may be the same, and so may the size.
    os.utime(written.path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert state.status() == "running"


def test_a_file_that_vanishes_between_two_looks_has_no_status(
    state: StateFile, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(path: Path) -> bytes:
        raise FileNotFoundError(path)

    written.say("running")
    monkeypatch.setattr(Path, "read_bytes", vanish)

    assert state.status() is None


@pytest.mark.parametrize("name", ["", "-rf", "../x", "a/b", "a b", "A", "a\n", "a" * 64, "a\0"])
def test_an_id_that_is_no_safe_path_or_argument_is_refused(runsc: Runsc, name: str) -> None:
    with pytest.raises(ValueError, match="is no sandbox id"):
        check_sandbox_id(name)
    with pytest.raises(ValueError, match="is no sandbox id"):
        runsc.state(name)


def test_a_safe_id_comes_back_as_it_is() -> None:
    assert check_sandbox_id(ID) == ID
