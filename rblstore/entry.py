"""How a program gets hold of a repository: init, open, reindex, repair, doctor; and a checkout, which needs none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rblstore.api import Repository
from rblstore.objects.paths import check_ref_name, given_path
from rblstore.opening import FOLDER, check_owner, discover
from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.operations.doctor import DoctorResult
    from rblstore.operations.progress import Progress
    from rblstore.operations.reindex import ReindexResult
    from rblstore.operations.repair import RepairResult
    from rblstore.operations.verify_signature import SignatureCheck


def init(path: str | Path = ".", *, branch: str = "main") -> Repository:
    """Makes a repository in a folder, which is made where it does not exist.

    Args:
        path: The folder that will hold ``.rbl``.
        branch: The first branch's name.

    Raises:
        ConflictError: There is one already.
    """
    return Repository(Store.init(given_path(path), branch=check_ref_name(branch, "branch")))


def open(path: str | Path = ".", *, allow_foreign: bool = False) -> Repository:
    """Opens the repository in a folder, or the nearest one above it.

    Args:
        path: Where to look.
        allow_foreign: Whether to open one that belongs to another user.

    Raises:
        NoRepositoryError: There is none.
    """
    return Repository(Store.open(discover(given_path(path)), allow_foreign=allow_foreign))


def reindex(path: str | Path = ".", *, allow_foreign: bool = False, progress: Progress | None = None) -> ReindexResult:
    """Rebuilds the catalog of the repository in a folder, or the nearest one above it, from packs and ``refs.log``.

    Args:
        path: Where to look.
        allow_foreign: Whether to rebuild that of another user.
        progress: Is told bytes read.

    Raises:
        NoRepositoryError: There is none.
    """
    from rblstore.operations.reindex import reindex as rebuild

    root = discover(given_path(path))
    check_owner(root / FOLDER, allow_foreign=allow_foreign)
    return rebuild(root, progress=progress)


def doctor(path: str | Path = ".", *, allow_foreign: bool = False) -> DoctorResult:
    """Looks at what a repository runs on: versions, file system, locks, permissions, space, clocks, catalog and log.

    Nothing is changed, and what is wrong is in the result, not raised; whether everything stored is whole,
    ``repo.fsck()`` says.

    Args:
        path: A folder; the repository is the nearest at or above it, whether it opens or not.
        allow_foreign: Whether the catalog of another user's may be opened.
    """
    from rblstore.operations.doctor import doctor as examine

    return examine(given_path(path), allow_foreign=allow_foreign)


def repair(
    path: str | Path = ".",
    *,
    sources: Iterable[str | Path] = (),
    apply: bool = False,
    allow_foreign: bool = False,
    progress: Progress | None = None,
) -> RepairResult:
    """Finds out what is damaged in a repository, and what can be done; does it where asked to. It need not open.

    Nothing is deleted: what is damaged goes to ``.rbl/quarantine``. Whatever is taken from anywhere is taken by its
    SHA-256.

    Args:
        path: Where to look for the repository.
        sources: Other copies of it, and directories or files that its contents came from.
        apply: Whether to carry the plan out.
        allow_foreign: Whether to repair that of another user.
        progress: Is told bytes.

    Raises:
        NoRepositoryError: There is none, or it is a later version's.
        NotFoundError: A source is not there.
        LockedError: Another process is writing.
    """
    from rblstore.opening import discover_damaged
    from rblstore.operations.repair import repair as mend

    root = discover_damaged(given_path(path))
    check_owner(root / FOLDER, allow_foreign=allow_foreign)
    return mend(root, sources=sources, apply=apply, progress=progress)


def load_checkout(directory: str | Path, **options: Any) -> Any:
    """A checkout directory as a transformers model, behaviors attached; needs no repository.

    Args:
        directory: What ``rbl checkout`` wrote.
        options: ``dtype``, ``device``, ``attn_implementation``.

    Raises:
        InputError: It is not a checkout.
    """
    from rblstore.operations.load import load_checkout as load

    return load(given_path(directory), **options)


def verify_signature(
    directory: str | Path,
    *,
    key: bytes | str | Path | None = None,
    roots: bytes | str | Path | None = None,
    identity: str | None = None,
    issuer: str | None = None,
    signature: str | Path | None = None,
) -> SignatureCheck:
    """Who vouches for the files of a directory, and whether that holds; needs no repository. Look at its ``status``.

    Args:
        directory: A checkout, or any model.
        key: A public key that you trust: PEM as bytes, or its file.
        roots: Certificates whose word you trust: PEM as bytes, or their file.
        identity: Whose sigstore signature you trust; with ``issuer``. Needs a network.
        issuer: The provider that must have said so.
        signature: The signature's file; None for ``model.sig`` in the directory.

    Raises:
        InputError: The directory cannot be read, or has a symbolic link; or what is to be trusted is no key.
        NotFoundError: There is no such directory or file.
    """
    from rblstore.operations.key_files import given_pem
    from rblstore.operations.verify_signature import Trust, verify_directory

    trust = Trust(given_pem(key, "public key"), given_pem(roots, "certificates"), identity, issuer)
    file = None if signature is None else given_path(signature)
    return verify_directory(given_path(directory), trust=trust, signature=file)
