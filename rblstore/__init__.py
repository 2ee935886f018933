"""Version control for what models do.

A repository holds *identities* (base checkpoints) and *behaviors* (LoRA adapters and other adaptations) as immutable,
content-addressed objects, and a history of *compositions* of them::

    import rblstore

    repo = rblstore.init("store")                             # or rblstore.open("store")
    repo.commit("base", identity="path/to/model", license="apache-2.0")
    repo.commit("polite", behaviors={"polite": "path/to/adapter"})

A model is composed by checkout, into a directory or into memory::

    model = repo.load("HEAD")                                 # a transformers model, behaviors attached
    repo.checkout("main~1", "out/")
    model = rblstore.load_checkout("out/")                    # needs no repository

Any behavior can be reverted, and the revert is proved on the live model, against recorded outputs::

    repo.add_probe("ten", ["The capital of France is", "Once upon a time"])
    result = repo.revert(behavior="polite")                   # or repo.revert("HEAD~1")
    result.verdict, result.verification.rf, result.verification.bit_equal

History is read with ``repo.log()``, ``repo.show()``, ``repo.diff()``; what is in a commit, and on whose terms, with
``repo.audit()``; whether the storage is whole, with ``repo.fsck()``. Every error is an :class:`RblError` that says what
happened, to which object, and what to do next.

Importing this module imports neither torch nor transformers; the methods that need them do.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers read it; importing it would take longer than everything else here
if TYPE_CHECKING:
    from typing import Any

    from rblstore.api import Repository
    from rblstore.checkpoints.saving import AdapterTensors
    from rblstore.entry import doctor, init, load_checkout, open, reindex, repair, verify_signature  # noqa: A004
    from rblstore.errors import (
        BadSignatureError,
        ConflictError,
        CorruptError,
        DivergedError,
        InputError,
        LockedError,
        NoRepositoryError,
        NotFoundError,
        NothingChangedError,
        RblError,
        UsageError,
    )
    from rblstore.live.mutations import IdentityMutated
    from rblstore.live.optimizer_state import capture_state, restore_state
    from rblstore.live.residue import ModelState, mend, residue

__version__ = "0.1.0"

__all__ = [
    "AdapterTensors",
    "BadSignatureError",
    "ConflictError",
    "CorruptError",
    "DivergedError",
    "IdentityMutated",
    "InputError",
    "LockedError",
    "ModelState",
    "NoRepositoryError",
    "NotFoundError",
    "NothingChangedError",
    "RblError",
    "Repository",
    "UsageError",
    "__version__",
    "capture_state",
    "doctor",
    "init",
    "load_checkout",
    "mend",
    "open",
    "reindex",
    "repair",
    "residue",
    "restore_state",
    "verify_signature",
]

_LAZY = {
    "AdapterTensors": "rblstore.checkpoints.saving",
    "BadSignatureError": "rblstore.errors",
    "ConflictError": "rblstore.errors",
    "CorruptError": "rblstore.errors",
    "DivergedError": "rblstore.errors",
    "IdentityMutated": "rblstore.live.mutations",
    "InputError": "rblstore.errors",
    "LockedError": "rblstore.errors",
    "ModelState": "rblstore.live.residue",
    "NoRepositoryError": "rblstore.errors",
    "NotFoundError": "rblstore.errors",
    "NothingChangedError": "rblstore.errors",
    "RblError": "rblstore.errors",
    "UsageError": "rblstore.errors",
    "Repository": "rblstore.api",
    "capture_state": "rblstore.live.optimizer_state",
    "doctor": "rblstore.entry",
    "init": "rblstore.entry",
    "load_checkout": "rblstore.entry",
    "mend": "rblstore.live.residue",
    "open": "rblstore.entry",
    "reindex": "rblstore.entry",
    "repair": "rblstore.entry",
    "residue": "rblstore.live.residue",
    "restore_state": "rblstore.live.optimizer_state",
    "verify_signature": "rblstore.entry",
}


def __getattr__(name: str) -> Any:
    # Resolved on first use, so that a command that only parses arguments does not pay for the catalog.
    if name not in _LAZY:
        raise AttributeError(f"module 'rblstore' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
