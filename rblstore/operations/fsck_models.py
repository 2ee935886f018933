"""The full check of what records say together: overlays against their files, and every composition."""

from __future__ import annotations

from functools import lru_cache

from rblstore.checkpoints.composition_ground import shown
from rblstore.checkpoints.overlay_effects import contradictions
from rblstore.errors import CorruptError, RblError
from rblstore.objects.content_records import Behavior, Identity
from rblstore.objects.history_records import Slot
from rblstore.objects.ids import BehaviorId, IdentityId
from rblstore.operations.fsck_findings import REPAIR, Findings
from rblstore.operations.fsck_records import Records
from rblstore.operations.stored_models import (
    IdentityView,
    Member,
    check_members,
    member,
    read_checkpoint,
    view_identity,
)

# Compositions of one history share almost everything, and each of these may be of thousands of tensors.
_IDENTITIES = 2
_BEHAVIORS = 64


def check_overlays(found: Findings, records: Records) -> None:
    """Says which overlays' effects are not what their files hold."""
    for record_id, record in records.of_kinds(Behavior.KIND):
        if not isinstance(record, Behavior) or record.form != "overlay":
            continue
        try:
            own = read_checkpoint(found.store, record.files)
            false = contradictions(record, own.tensors, own.beside)
        except RblError:
            continue  # What is damaged has been named already.
        if false:
            found.add(record_id, "record", f"its effects are not what its files hold: {shown(false)}", REPAIR)


def check_compositions(found: Findings, records: Records) -> None:
    """Says which compositions do not compose."""
    store = found.store

    @lru_cache(_IDENTITIES)
    def identity(identity_id: IdentityId) -> IdentityView:
        return view_identity(store, store.record(identity_id, Identity))

    @lru_cache(_BEHAVIORS)
    def behavior(behavior_id: BehaviorId) -> Member:
        return member(store, Slot("", behavior_id, 1.0))

    for composition_id, composition in records.compositions.items():
        try:
            found_members = [
                Member(slot.name, one.behavior, slot.weight, one.config)
                for slot in composition.slots
                for one in (behavior(slot.behavior),)
            ]
            check_members(identity(composition.identity), found_members, unloadable=True)
        except CorruptError:
            continue  # What it needs has been named already.
        except RblError as error:
            found.add(composition_id, "composition", error.message, REPAIR)
