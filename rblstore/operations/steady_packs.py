"""Looking at packs one after the other while a repack may replace them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from rblstore.errors import CorruptError, LockedError
from rblstore.objects.ids import PackId
from rblstore.repository import Store
from rblstore.storage.locks import LockUnavailableError

T = TypeVar("T")

_TRIES: Final = 5


def while_packs_stay(store: Store, look: Callable[[], T]) -> T:
    """What a look at every pack finds; it is taken again where packs that it began with were replaced meanwhile.

    Args:
        store: The repository.
        look: Reads, and changes nothing.

    Raises:
        CorruptError: Something is damaged, and nothing was replaced.
    """
    for _ in range(_TRIES - 1):
        before = packs_now(store)
        try:
            found = look()
        except CorruptError:
            # A pack may be missing, or the catalog not know it any more, that came and went during the look.
            if before == packs_now(store):
                raise
        else:
            if before <= packs_now(store):
                return found
    try:
        # Packs are replaced faster than they are looked at.
        with store.maintenance():
            return look()
    except (LockedError, LockUnavailableError):
        return look()


def packs_now(store: Store) -> set[tuple[PackId, str]]:
    """Those that the catalog lists, and those that are there: a repack takes from the one, then from the other."""
    with store.catalog.read() as reader:
        listed = {(row.pack, "listed") for row in reader.packs()}
    return listed | {(pack, "there") for pack in store.packs()}
