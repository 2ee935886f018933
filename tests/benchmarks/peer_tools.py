"""The tools that are compared: the commands that a user types for each step, and where each keeps its store.

Each works in a folder of its own, which holds ``base``, ``fine-tune`` and ``adapter`` (trees of its own, since some
tools replace what they track) and becomes its working tree. Paths in the commands are relative to it, so that they read
the same on every machine. Defaults stay as they are; telemetry and searches for updates are off.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

BASE, FINE_TUNE, ADAPTER = "base", "fine-tune", "adapter"
TREES = (BASE, FINE_TUNE, ADAPTER)
UNTOUCHED, TOUCHED = "again, untouched", "again, touched"
MERGED = "restore adapter, merged"


@dataclass(frozen=True)
class Action:
    """One step of a tool.

    Attributes:
        line: The shell line that is timed.
        before: Lines that prepare it, outside the clock.
        after: Lines that follow it, outside the clock.
        restored: The folder in which a restored tree lies afterwards, or None.
    """

    line: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    restored: str | None = None


@dataclass(frozen=True)
class Peer:
    """One tool, as it is set up here.

    Attributes:
        name: How the command line calls it.
        title: How tables call it.
        needs: The programs that must be on the path.
        store: The folder whose bytes are its store.
        prepare: Lines that make an empty store, outside the clock.
        actions: By step.
        version: What to ask for its version.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    store: str
    prepare: tuple[str, ...]
    version: tuple[str, ...]
    actions: Mapping[str, Action] = field(default_factory=dict)


def commit_of(tree: str) -> str:
    """The name of the step that commits a tree."""
    return f"commit {tree}"


def restore_of(tree: str) -> str:
    """The name of the step that restores a tree."""
    return f"restore {tree}"


STEPS = (*map(commit_of, TREES), UNTOUCHED, TOUCHED, *map(restore_of, TREES), MERGED)


def _rblstore(compression: str) -> Peer:
    rbl = "rbl -C store"
    prepare: tuple[str, ...] = ("rbl init store",)
    if compression != "fast":
        setting = f'compression = "{compression}"'
        prepare += (
            f"sed -i 's/compression = \"fast\"/{setting}/' store/.rbl/config.toml",
            f"grep -q '{setting}' store/.rbl/config.toml",
        )
    actions = {
        commit_of(BASE): Action(f"{rbl} commit -m base --identity ../base", after=(f"{rbl} tag base",)),
        commit_of(FINE_TUNE): Action(
            f"{rbl} commit -m ft --behavior ft=../fine-tune", before=(f"{rbl} switch -c with-ft base",)
        ),
        # An adapter of the base does not stand on the fine-tune, so it has a branch that begins at the base.
        commit_of(ADAPTER): Action(
            f"{rbl} commit -m a --behavior a=../adapter", before=(f"{rbl} switch -c with-a base",)
        ),
        UNTOUCHED: Action(
            f"{rbl} commit -m again --identity ../base --allow-empty", before=(f"{rbl} switch main",)
        ),
        TOUCHED: Action(f"{rbl} commit -m touched --identity ../base"),
        restore_of(BASE): Action(f"{rbl} checkout base ../out-base", restored="out-base"),
        restore_of(FINE_TUNE): Action(f"{rbl} checkout with-ft ../out-ft", restored="out-ft"),
        restore_of(ADAPTER): Action(f"{rbl} checkout with-a ../out-a", restored="out-a/behaviors/a"),
        MERGED: Action(f"{rbl} checkout with-a ../out-merged --form merged"),
    }  # fmt: skip
    name = "rblstore" if compression == "fast" else f"rblstore-{compression}"
    title = "rblstore" if compression == "fast" else f"rblstore, {compression}"
    return Peer(name, title, ("rbl",), "store/.rbl", prepare, ("rbl", "--version"), actions)


def _copies() -> Peer:
    def commit(tree: str, name: str) -> Action:
        sums = f"find {name} -type f -exec sha256sum {{}} + > {name}.sha256"
        return Action(f"cp -r {tree} store/{name} && cd store && {sums}")

    def restore(tree: str) -> Action:
        line = f"cp -r store/{tree} out-{tree}/ && cd out-{tree} && sha256sum --quiet -c ../store/{tree}.sha256"
        return Action(line, before=(f"mkdir out-{tree}",), restored=f"out-{tree}/{tree}")

    actions = {commit_of(tree): commit(tree, tree) for tree in TREES}
    actions |= {restore_of(tree): restore(tree) for tree in TREES}
    actions |= {UNTOUCHED: commit(BASE, "again"), TOUCHED: commit(BASE, "touched")}
    return Peer("cp", "cp + sha256sum", ("cp", "sha256sum"), "store", ("mkdir store",), ("cp", "--version"), actions)


def _git_lfs() -> Peer:
    def commit(tree: str, message: str, options: str = "") -> Action:
        return Action(f"git add {tree} && git commit -q {options}-m {message}", after=(f"git tag v-{message}",))

    def restore(tree: str) -> Action:
        return Action(f"git checkout -q v-{tree} -- {tree}", before=(f"rm -rf {tree}",), restored=tree)

    prepare = (
        "git init -q .",
        "git lfs install --local",
        "git lfs track '*.safetensors'",
        "git add .gitattributes",
        "git commit -q -m attributes",
    )
    actions = {commit_of(tree): commit(tree, tree) for tree in TREES}
    actions |= {restore_of(tree): restore(tree) for tree in TREES}
    actions |= {UNTOUCHED: commit(BASE, "again", "--allow-empty "), TOUCHED: commit(BASE, "touched")}
    return Peer("git-lfs", "git-lfs", ("git", "git-lfs"), ".git", prepare, ("git-lfs", "--version"), actions)


def _dvc(links: bool) -> Peer:
    def restore(tree: str) -> Action:
        before = (f"rm -rf {tree}", f"git checkout -q v-{tree} -- {tree}.dvc")
        return Action(f"dvc checkout {tree}.dvc", before=before, restored=tree)

    def commit(tree: str) -> Action:
        # Git's part of it takes no time beside `dvc add`, and is left out to the tool's favour.
        recorded = f"git add {tree}.dvc .gitignore && git commit -q -m {tree} && git tag v-{tree}"
        return Action(f"dvc add {tree}", after=(recorded,))

    prepare: tuple[str, ...] = (
        "git init -q .",
        "dvc init -q",
        "dvc config core.analytics false",
        "dvc config core.check_update false",
    )
    if links:
        prepare += ("dvc config cache.type hardlink",)
    prepare += ("git add .dvc && git commit -q -m dvc",)
    actions = {commit_of(tree): commit(tree) for tree in TREES}
    actions |= {restore_of(tree): restore(tree) for tree in TREES}
    # What is linked into the cache is read-only until the tool is told otherwise.
    unlink = (f"dvc unprotect {BASE}",) if links else ()
    actions |= {UNTOUCHED: Action(f"dvc add {BASE}"), TOUCHED: Action(f"dvc add {BASE}", before=unlink)}
    name, title = ("dvc-hardlink", "DVC, hard links") if links else ("dvc", "DVC")
    return Peer(name, title, ("git", "dvc"), ".dvc/cache", prepare, ("dvc", "--version"), actions)


def _restic() -> Peer:
    def commit(tree: str, tag: str) -> Action:
        return Action(f"restic -r store backup --tag {tag} {tree}")

    def restore(tree: str) -> Action:
        line = f"restic -r store restore latest --tag {tree} --target out-{tree}"
        return Action(line, restored=f"out-{tree}/{tree}")

    actions = {commit_of(tree): commit(tree, tree) for tree in TREES}
    actions |= {restore_of(tree): restore(tree) for tree in TREES}
    actions |= {UNTOUCHED: commit(BASE, "again"), TOUCHED: commit(BASE, "touched")}
    return Peer("restic", "restic", ("restic",), "store", ("restic -r store init",), ("restic", "version"), actions)


def _borg(compression: str) -> Peer:
    def commit(tree: str, archive: str) -> Action:
        return Action(f"borg create -C {compression} store::{archive} {tree}")

    def restore(tree: str) -> Action:
        line = f"cd out-{tree} && borg extract ../store::{tree}"
        return Action(line, before=(f"mkdir out-{tree}",), restored=f"out-{tree}/{tree}")

    actions = {commit_of(tree): commit(tree, tree) for tree in TREES}
    actions |= {restore_of(tree): restore(tree) for tree in TREES}
    actions |= {UNTOUCHED: commit(BASE, "again"), TOUCHED: commit(BASE, "touched")}
    prepare = ("borg init --encryption=none store",)
    return Peer(
        f"borg-{compression}", f"borg, {compression}", ("borg",), "store", prepare, ("borg", "--version"), actions
    )


def _every_peer() -> dict[str, Peer]:
    every = [_rblstore("fast"), _rblstore("none"), _rblstore("max"), _copies(), _git_lfs(), _dvc(links=False)]
    every += [_dvc(links=True), _restic(), _borg("none"), _borg("zstd")]
    return {peer.name: peer for peer in every}


PEERS: Mapping[str, Peer] = MappingProxyType(_every_peer())
# `max` trades time for size and is asked for by name.
USUAL = tuple(name for name in PEERS if name != "rblstore-max")


def installed(names: Sequence[str], path: str) -> tuple[list[Peer], dict[str, str]]:
    """Those tools that can run, and why each other one is skipped.

    Args:
        names: Of :data:`PEERS`.
        path: Where to look for programs, as in ``PATH``.

    Raises:
        SystemExit: A name is none of those.
    """
    if unknown := [name for name in names if name not in PEERS]:
        raise SystemExit(f"unknown peer: {', '.join(unknown)} (known: {', '.join(PEERS)})")
    found, skipped = [], {}
    for name in names:
        peer = PEERS[name]
        missing = [program for program in peer.needs if shutil.which(program, path=path) is None]
        if missing:
            skipped[name] = f"not on PATH: {', '.join(missing)}"
        else:
            found.append(peer)
    return found, skipped
