"""``status``: what HEAD stands for, or whether a checkout directory is still what was checked out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rblstore.objects.history_records import Slot
from rblstore.objects.ids import CommitId, CompositionId, IdentityId
from rblstore.operations.result import Result
from rblstore.repository import HEADS, Store

if TYPE_CHECKING:
    from rblstore.checkpoints.checkout_comparison import Difference


@dataclass(frozen=True)
class RepositoryStatus(Result):
    """What HEAD stands for.

    Attributes:
        branch: HEAD's branch.
        commit: Its tip, or None before the first commit.
        composition: The tip's, or None.
        identity: The tip's, or None.
        slots: The behaviors in order.
    """

    branch: str
    commit: CommitId | None
    composition: CompositionId | None
    identity: IdentityId | None
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class CheckoutStatus(Result):
    """Whether a checkout directory is what was checked out.

    Attributes:
        directory: Where.
        commit: Of which commit.
        composition: Of which composition.
        form: ``adapters``, ``merged`` or ``partial``, of which only what was taken is compared.
        known: Whether this repository has that commit.
        clean: Whether every file is as it was written, and there is no other.
        differences: (path, kind) where not: ``missing``, ``changed`` or ``added``.
    """

    directory: Path
    commit: CommitId
    composition: CompositionId
    form: str
    known: bool
    clean: bool
    differences: tuple[Difference, ...]


def status(store: Store) -> RepositoryStatus:
    """What HEAD stands for; reads the catalog alone."""
    branch = store.head_branch()
    with store.catalog.read() as reader:
        value = reader.ref(branch)
        row = None if value is None else reader.commit(CommitId(value))
        composition = None if row is None else reader.composition(row.composition)
    return RepositoryStatus(
        branch.removeprefix(HEADS),
        None if row is None else row.id,
        None if row is None else row.composition,
        None if composition is None else composition.identity,
        () if composition is None else composition.slots,
    )


def checkout_status(store: Store, directory: Path) -> CheckoutStatus:
    """Compares a checkout directory with what was written there, digest by digest.

    Raises:
        InputError: The directory is no checkout.
    """
    from rblstore.checkpoints.checkout_comparison import compare_directory
    from rblstore.operations.checkout_manifest import read_manifest

    manifest = read_manifest(directory)
    differences = tuple(compare_directory(directory, manifest))
    with store.catalog.read() as reader:
        known = reader.commit(manifest.commit) is not None
    return CheckoutStatus(
        directory, manifest.commit, manifest.composition, manifest.form, known, not differences, differences
    )
