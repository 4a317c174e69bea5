"""Looks at a host before a worker does, and says what to mend."""

from __future__ import annotations
