"""Names of any bytes, and of the longest length, are kept as they are."""

from __future__ import annotations

import os
from pathlib import Path

NAMES = ("naïve", "日本語", "🦬", "e\u0301", "\u00e9", "white space\n", "'\"\\*", "-rf", "n" * 255)

for name in NAMES:
    os.close(os.open(name, os.O_CREAT | os.O_EXCL))
os.close(os.open(b"\xff\xfe", os.O_CREAT | os.O_EXCL))
found = {os.fsencode(path.name) for path in Path.cwd().iterdir()}
assert found >= {*map(os.fsencode, NAMES), b"\xff\xfe"}
