"""Attacks on this host from real sandboxes, and the proof that they came to nothing."""

from __future__ import annotations
