"""How a program gets hold of a repository: init, open, reindex; and a checkout, which needs none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rblstore.api import Repository
from rblstore.opening import FOLDER, check_owner, discover
from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.operations.progress import Progress
    from rblstore.operations.reindex import ReindexResult


def init(path: str | Path = ".", *, branch: str = "main") -> Repository:
    """Makes a repository in a folder, which is made where it does not exist.

    Args:
        path: The folder that will hold ``.rbl``.
        branch: The first branch's name.

    Raises:
        ConflictError: There is one already.
    """
    from rblstore.objects.paths import check_ref_name

    return Repository(Store.init(Path(path), branch=check_ref_name(branch, "branch")))


def open(path: str | Path = ".", *, allow_foreign: bool = False) -> Repository:
    """Opens the repository in a folder, or the nearest one above it.

    Args:
        path: Where to look.
        allow_foreign: Whether to open one that belongs to another user.

    Raises:
        NoRepositoryError: There is none.
    """
    return Repository(Store.open(discover(Path(path)), allow_foreign=allow_foreign))


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

    root = discover(Path(path))
    check_owner(root / FOLDER, allow_foreign=allow_foreign)
    return rebuild(root, progress=progress)


def load_checkout(directory: str | Path, **options: Any) -> Any:
    """A checkout directory as a transformers model, behaviors attached; needs no repository.

    Args:
        directory: What ``rbl checkout`` wrote.
        options: ``dtype``, ``device``, ``attn_implementation``.

    Raises:
        InputError: It is not a checkout.
    """
    from rblstore.operations.load import load_checkout as load

    return load(Path(directory), **options)
