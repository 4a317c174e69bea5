"""Four processes write to one database with a write-ahead log, whose index is shared memory."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

WRITER = """
import sqlite3
with sqlite3.connect("data.db", timeout=60) as database:
    for number in range(50):
        with database:
            database.execute("INSERT INTO numbers VALUES (?)", (number,))
"""

database = sqlite3.connect("data.db")
assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
assert database.execute("PRAGMA mmap_size=1048576").fetchone() == (1048576,)
database.execute("CREATE TABLE numbers (number INTEGER)")
writers = [subprocess.Popen([sys.executable, "-c", WRITER]) for _ in range(4)]
assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
assert database.execute("SELECT count(*), sum(number) FROM numbers").fetchone() == (200, 4900)
shell = subprocess.run(
    ["sqlite3", "data.db", "PRAGMA integrity_check"], stdout=subprocess.PIPE, check=True
)
assert shell.stdout == b"ok\n"
