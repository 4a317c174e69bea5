"""An innocent job: computes, prints, ends."""

from __future__ import annotations

print(sum(n * n for n in range(10_000)))
