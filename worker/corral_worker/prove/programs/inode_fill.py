"""Makes empty files as long as it can, and tells how many there are."""

from __future__ import annotations

import os

count = 0
while True:
    os.close(os.open(f"/workspace/{count}", os.O_CREAT | os.O_WRONLY))
    count += 1
    if count % 1000 == 0:
        print(count, flush=True)
