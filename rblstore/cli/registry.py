"""Which commands there are and what each is for, so that listing them imports none."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

SECTIONS: Final = (
    (
        "Record and compose",
        {
            "init": "Make a repository.",
            "commit": "Record an identity, behaviors, or a change of them.",
            "checkout": "Compose a commit's model into a directory.",
            "revert": "Take out what a commit or a behavior added, and prove it.",
        },
    ),
    (
        "Look at history",
        {
            "log": "Show the commits.",
            "show": "Show one object, whatever it is.",
            "diff": "Show what differs between two commits.",
            "status": "Show the branch, or a checkout against its commit.",
            "du": "Show what the repository or a commit takes, shares and adds.",
            "state": "Say something about an identity or behavior, or show what is said.",
            "training": "Show the training states that were stored with commits.",
            "sign": "Vouch for a commit's files, or for a verification.",
            "verify-signature": "Show who vouches for a commit, a verification or a directory.",
            "audit": "Show what is in a model, on whose terms, and what they ask.",
            "identify": "Say what a loose file or directory is, or what it resembles.",
            "export": "Write a commit's bill of materials, attestation or model card.",
        },
    ),
    (
        "Move refs",
        {
            "branch": "List, make or delete branches.",
            "switch": "Make another branch the current one.",
            "tag": "List, make or delete tags.",
            "undo": "Reverse the latest operation.",
            "op": "Show the operation log.",
        },
    ),
    (
        "Measure",
        {
            "probe": "Keep the prompts that outputs are measured on.",
            "baseline": "Record a composition's outputs under a probe.",
            "verify": "Compare a composition's outputs with a baseline.",
            "report": "Write everything known of a commit as one page.",
            "study": "Measure a model in many states: elimination, mutation, stability, and more.",
        },
    ),
    (
        "Maintain",
        {
            "fsck": "Check that everything stored is whole.",
            "gc": "Let go of what nothing reaches: to the trash, then for good.",
            "forget": "Remove an identity's or behavior's content, and keep its record.",
            "repack": "Store everything anew: smaller, in fewer packs.",
            "doctor": "Look at what the repository runs on, and say what to do.",
            "repair": "Set aside what is damaged, and mend it from other copies.",
            "reindex": "Rebuild the catalog from packs and refs.log.",
            "demo": "Make, train, commit and revert a small model, offline.",
        },
    ),
)

SUMMARIES: Final = MappingProxyType({name: summary for _, commands in SECTIONS for name, summary in commands.items()})
