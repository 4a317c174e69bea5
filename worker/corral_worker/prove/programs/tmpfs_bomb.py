"""Takes memory by files, in every place it may write to, and keeps it until it is killed."""

from __future__ import annotations

import os
import signal

places = [
    os.open(f"{place}/bomb", os.O_WRONLY | os.O_CREAT)
    for place in ("/workspace", "/tmp", "/var/tmp", "/home", "/dev/shm")
]
while places:
    for place in tuple(places):
        try:
            os.write(place, b"\1" * (1 << 20))
        except OSError:
            places.remove(place)
while True:
    signal.pause()
