"""Pipelines, exit codes, signals, time limits, process groups and orphans."""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

piped = subprocess.run("seq 1000 | grep 7 | wc -l", shell=True, stdout=subprocess.PIPE, check=True)
assert piped.stdout.strip() == b"271"
assert subprocess.run(["sh", "-c", "exit 7"], check=False).returncode == 7
assert subprocess.run(["sh", "-c", "kill -9 $$"], check=False).returncode == -signal.SIGKILL

with ThreadPoolExecutor(max_workers=8) as pool:
    codes = pool.map(lambda code: subprocess.call(["sh", "-c", f"exit {code}"]), range(20))
    assert list(codes) == list(range(20))

with subprocess.Popen(["sleep", "1000"], start_new_session=True) as sleeping:
    assert os.getsid(sleeping.pid) == sleeping.pid
    try:
        sleeping.wait(timeout=0.01)
    except subprocess.TimeoutExpired:
        os.killpg(sleeping.pid, signal.SIGTERM)
    assert sleeping.wait(timeout=60) == -signal.SIGTERM

orphans = subprocess.run(
    ["sh", "-c", "(sleep 0.01; echo orphan) & exit 0"], stdout=subprocess.PIPE, check=True
)
assert orphans.stdout == b"orphan\n"
