"""What a worker tells its log, its sandboxes and runsc."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path

import msgspec
import pytest
from support.workers import SLEEPER, RunningWorker, running_worker, until_started

from corral import Client, ErrSecurityViolation, Job

pytestmark = pytest.mark.live


async def test_the_log_has_one_line_a_job_and_nothing_of_its_content(
    client: Client, worker: RunningWorker
) -> None:
    secret = "payload-that-is-nobodys-business"
    job = Job(
        argv=("sh", "-c", f"echo {secret}; cat"),
        image="base",
        env={"TOKEN": secret},
        stdin=secret.encode(),
    )
    await (await client.submit(job)).result(timeout=30)
    with pytest.raises(ErrSecurityViolation):
        await (await client.submit(msgspec.structs.replace(job, user="0"))).result(timeout=30)

    finished = [entry for entry in worker.events() if entry["event"] == "job.finished"]
    assert [entry.get("outcome") for entry in finished] == ["exited", None]
    assert not any(secret in json.dumps(entry) for entry in worker.events())


async def test_nothing_of_the_workers_environment_is_inside(
    client: Client, worker: RunningWorker
) -> None:
    result = await (await client.submit(Job(argv=("env",), image="base"))).result(timeout=30)

    assert b"do-not-leak" not in result.stdout
    assert b"CORRAL" not in result.stdout


def _wrapper(directory: Path) -> Path:
    """Return a runsc that notes its verbs and keeps the configurations it is given."""
    real = shutil.which("runsc")
    script = directory / "runsc-wrapper"
    script.write_text(
        textwrap.dedent(f"""\
            #!/bin/sh
            bundle=
            for word in "$@"; do
                case $word in run | kill | delete) echo "$word" >>{directory}/verbs ;; esac
                if [ "$bundle" = next ]; then cp "$word/config.json" {directory}/; bundle=; fi
                if [ "$word" = --bundle ]; then bundle=next; fi
            done
            env >>{directory}/environments
            exec {real} "$@"
            """)
    )
    script.chmod(0o755)
    return script


@pytest.mark.usefixtures("_cold")
async def test_cancel_issues_kill_and_then_delete_and_runsc_gets_no_environment(
    environ: dict[str, str], client: Client, state_dir: Path
) -> None:
    seen = state_dir / "seen"
    seen.mkdir()
    environ = {
        **environ,
        "CORRAL_RUNSC_PATH": str(_wrapper(seen)),
        "NOTIFY_SOCKET": "/run/notify",
    }
    async with running_worker(environ):
        (seen / "verbs").write_text("")
        job = await client.submit(SLEEPER)
        await until_started(environ)
        assert await job.cancel(timeout=30)

    assert (seen / "verbs").read_text().split() == ["run", "kill", "delete"]
    names = {line.partition("=")[0] for line in (seen / "environments").read_text().splitlines()}
    assert names <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD"}
    config = json.loads((seen / "config.json").read_text())
    assert config["process"]["args"] == list(SLEEPER.argv)
