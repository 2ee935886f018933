"""``python -m rblstore``."""

from __future__ import annotations

from rblstore.cli.main import main

if __name__ == "__main__":
    main()
