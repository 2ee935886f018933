"""Where a directory was downloaded from, as the Hugging Face hub's own client notes it down beside the files.

Two notes are read, both as huggingface_hub writes them. In its cache a model lies in
``models--ORG--NAME/snapshots/REVISION``. ``hf download --local-dir`` keeps three lines in
``.cache/huggingface/download/PATH.metadata``: the commit of the hub's repository, the file's etag (for weights their
SHA-256), and when. It does not note the repository's name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from rblstore.checkpoints.open_beneath import open_regular
from rblstore.checkpoints.source_directory import SourceDirectory, hub_snapshot
from rblstore.objects.evidence_records import Claim

CACHE_ORIGIN: Final = "hub cache"
DOWNLOAD_ORIGIN: Final = "hub download"

_FOLDER: Final = (".cache", "huggingface", "download")
_METADATA_BYTES: Final = 1024
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CACHED: Final = re.compile(r"models--[A-Za-z0-9._-]+")


def hub_claims(source: SourceDirectory, digests: Mapping[str, str]) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """Source and revision of what the hub's client downloaded.

    A revision is claimed from notes only where all weights are of one commit and are still what was downloaded.

    Args:
        source: The scanned directory.
        digests: SHA-256 of its files as they were read, by path.

    Returns:
        Claims, and warnings about notes that do not fit the files.
    """
    snapshot = hub_snapshot(source.path)
    if snapshot is not None and _CACHED.fullmatch(snapshot.parent.parent.name):
        name = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        found = [Claim("source", name, CACHE_ORIGIN)]
        if _COMMIT.fullmatch(snapshot.name):
            found.append(Claim("source_revision", snapshot.name, CACHE_ORIGIN))
        return tuple(found), ()
    return _downloaded(source, digests)


def _downloaded(source: SourceDirectory, digests: Mapping[str, str]) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    commits: set[str] = set()
    weights = [file for file in source.files if file.kind == "safetensors"]
    noted = {file.path: note for file in weights if (note := _note(source, file.path)) is not None}
    for path, (commit, etag) in noted.items():
        if digests.get(path) != etag:
            return (), (f"{path} is not what was downloaded at commit {commit[:12]}; no source revision is recorded",)
        commits.add(commit)
    if len(commits) > 1:
        return (), (f"the weights were downloaded at {len(commits)} commits; no source revision is recorded",)
    if not commits or len(noted) < len(weights):
        return (), ()
    return (Claim("source_revision", commits.pop(), DOWNLOAD_ORIGIN),), ()


def _note(source: SourceDirectory, path: str) -> tuple[str, str] | None:
    """Commit and SHA-256 that the client noted for a file; None where there is no such note, or another kind of one."""
    *folders, name = path.split("/")
    try:
        root = os.open(source.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = open_regular(root, (*_FOLDER, *folders, f"{name}.metadata"))
        finally:
            os.close(root)
        try:
            data = os.read(descriptor, _METADATA_BYTES)
        finally:
            os.close(descriptor)
    except OSError:  # whoever did not download it this way has no note
        return None
    lines = [line.strip() for line in data.decode("latin-1").splitlines()]
    if len(lines) < 2 or not _COMMIT.fullmatch(lines[0]) or not _SHA256.fullmatch(lines[1]):
        return None
    return lines[0], lines[1]
