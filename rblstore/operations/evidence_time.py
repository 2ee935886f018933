"""When evidence was made: by the clock, unless that was set back."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from rblstore.objects.evidence_records import Baseline, Statement, Verification
from rblstore.objects.ids import RecordId
from rblstore.objects.signature_records import Signature
from rblstore.objects.study_records import Study
from rblstore.objects.training_records import TrainingState
from rblstore.repository import Store, utc_now

_OURS: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_TICK: Final = timedelta(milliseconds=1)


def evidence_time(
    store: Store, subject: RecordId, kind: type[Statement | Baseline | Verification | TrainingState | Study | Signature]
) -> str:
    """Now; or, where evidence of this kind about the subject is dated later than that, just after the last of it.

    Evidence has no other order that outlives its catalog: a correction made after the clock was set back would else
    count as older than what it corrects.

    Args:
        store: The repository.
        subject: What it is about.
        kind: What kind of evidence.
    """
    with store.catalog.read() as reader:
        earlier = reader.evidence(subject, kind.KIND)
    now = utc_now()
    latest = max((store.record(one, kind).time for one in earlier), default="")
    if latest < now or not _OURS.fullmatch(latest):
        return now
    try:
        after = datetime.fromisoformat(latest.removesuffix("Z")) + _TICK
    except (ValueError, OverflowError):  # the last moment of the last year: nothing comes after it
        return now
    return after.isoformat(timespec="milliseconds") + "Z"
