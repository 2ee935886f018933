"""The SQLite index over packs, commits, refs and operations: derived, rebuilt by `rbl reindex`. Rows never escape.

`database.Catalog` is the way in; `reader.CatalogReader` and `writer.CatalogWriter` are what its transactions hand out.
"""
