"""The worker: what an operator runs."""

from __future__ import annotations
