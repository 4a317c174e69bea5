#!/usr/bin/env python3
"""Print one of the machine's apt sources again, for another Debian release.

Usage: second_apt_source.py FILE:ENTRY RELEASE

FILE:ENTRY is what `apt-get indextargets` calls the Sourcesentry: a line of a one-line-style
`.list` file, or a stanza of a deb822-style `.sources` file, both counted from one. Mirror,
keys and options stay as the machine's administrator chose them; only the release and, as
nothing else is needed, the component (main) are replaced. The output has the style of the input.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ONE_LINE = re.compile(r"deb\s+(?P<options>\[[^]]*\]\s+)?(?P<uri>\S+)\s+\S+\s+\S+")
DROPPED = ("types", "suites", "components")


def one_line(text: str, entry: int, release: str) -> str:
    match = ONE_LINE.match(text.splitlines()[entry - 1].strip())
    if match is None:
        message = f"line {entry} is not a one-line apt source"
        raise ValueError(message)
    return f"deb {match['options'] or ''}{match['uri']} {release} main\n"


def deb822(text: str, entry: int, release: str) -> str:
    # apt counts only stanzas that hold fields: comments alone are none.
    lines = [line.rstrip() for line in text.splitlines() if not line.startswith("#")]
    stanzas = [part for part in re.split(r"\n{2,}", "\n".join(lines).strip("\n")) if part]
    fields = re.split(r"\n(?=\S)", stanzas[entry - 1])
    kept = [field for field in fields if field.partition(":")[0].lower() not in DROPPED]
    return "\n".join(["Types: deb", *kept, f"Suites: {release}", "Components: main", ""])


def main(argv: list[str]) -> int:
    if len(argv) != 2:  # noqa: PLR2004 - file and entry, release
        sys.stderr.write("usage: second_apt_source.py FILE:ENTRY RELEASE\n")
        return 2
    name, _, entry = argv[0].rpartition(":")
    text = Path(name).read_text(encoding="utf-8")
    style = deb822 if name.endswith(".sources") else one_line
    sys.stdout.write(style(text, int(entry), argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
