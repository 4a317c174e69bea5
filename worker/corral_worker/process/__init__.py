"""Child processes: always owned, always reaped, never read without a bound."""

from __future__ import annotations
