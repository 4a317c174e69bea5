"""``python -m corral_worker`` is ``corral``."""

from __future__ import annotations

from corral_worker.cli import main

if __name__ == "__main__":
    main()
