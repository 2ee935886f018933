"""Whether a behavior is said to have been made for another base than the identity that it is bound to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from rblstore.provenance.said import COMMIT, Said

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class BaseMismatch:
    """What a behavior says of its base, and what is said of the identity.

    Attributes:
        what: ``base``: another model; ``revision``: another commit of the same.
        behavior: What the behavior names.
        identity: What the identity is said to be.
    """

    what: Literal["base", "revision"]
    behavior: tuple[str, ...]
    identity: tuple[str, ...]

    @property
    def message(self) -> str:
        """The same in words."""
        what = "it is said to be made for" if self.what == "base" else "it is said to be made for the commit"
        return f"{what} {', '.join(self.behavior)}, and what it is bound to is said to be {', '.join(self.identity)}"


def base_mismatch(behavior: Said, identity: Said) -> BaseMismatch | None:
    """Compares what is said; the tensors were compared when the behavior was bound, and decide more than any name.

    Compared are ids of the hub only (``org/name``, in any case): ``base_models`` of the behavior with ``sources`` of
    the identity, and where these agree, ``base_revision`` with ``source_revision``, if both are whole commit hashes. A
    path on somebody's disk, a bare name, a branch or tag, and an identity of which nobody said where it comes from are
    evidence of nothing. For a behavior that is said to be a merge it is enough that one of its bases is the identity.

    Returns:
        None where nothing contradicts.
    """
    bases = _hub_ids(behavior.base_models)
    sources = _hub_ids(identity.sources)
    if not bases or not sources:
        return None
    others = tuple(shown for name, shown in bases.items() if name not in sources)
    if others and not (behavior.relation == "merge" and len(others) < len(bases)):
        return BaseMismatch("base", others, tuple(sources.values()))
    asked, have = behavior.base_revision, identity.source_revision
    if asked and have and asked != have and COMMIT.fullmatch(asked) and COMMIT.fullmatch(have):
        return BaseMismatch("revision", (asked,), (have,))
    return None


def _hub_ids(names: tuple[str, ...]) -> dict[str, str]:
    """Names that are ids of the hub: by what is compared."""
    found = (re.sub(r"^https?://(www\.)?(huggingface\.co|hf\.co)/", "", name).rstrip("/") for name in names)
    return {name.lower(): name for name in found if _HUB_ID.fullmatch(name)}
