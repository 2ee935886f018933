"""The SQLite index over packs, commits, refs and operations: derived, rebuilt by `rbl reindex`. Rows never escape."""
