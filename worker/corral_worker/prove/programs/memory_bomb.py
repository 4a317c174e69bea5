"""Takes memory of its own until there is none."""

from __future__ import annotations

hoard = []
while True:
    hoard.append(b"\1" * (1 << 20))
    hoard.append(bytes(bytearray(hoard[-1])))
