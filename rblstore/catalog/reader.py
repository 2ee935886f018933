"""What a read transaction hands out: one consistent snapshot of the whole catalog."""

from __future__ import annotations

from rblstore.catalog.content_index import ContentIndex
from rblstore.catalog.graph import CommitGraph
from rblstore.catalog.operation_log import OperationLog


class CatalogReader(ContentIndex, CommitGraph, OperationLog):
    """Everything that can be asked of a catalog; usable until its transaction ends, iterators included.

    A snapshot holds SQLite's shared lock, which lets others prepare a commit but not finish it: keep it short, and read
    no tensors inside it.
    """
