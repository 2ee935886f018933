"""The public repository: every operation as a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rblstore.audits import Audits
from rblstore.configuration import check_author
from rblstore.maintenance import Maintenance
from rblstore.models import Models
from rblstore.objects.ids import CommitId
from rblstore.objects.paths import given_path
from rblstore.repository import Store
from rblstore.studies import Studies

if TYPE_CHECKING:
    from rblstore.checkpoints.checkout_layout import CheckoutForm
    from rblstore.checkpoints.saving import ModelSource
    from rblstore.configuration import Compression
    from rblstore.objects.evidence_records import Positions
    from rblstore.operations.baseline import BaselineResult
    from rblstore.operations.checkout import CheckoutResult
    from rblstore.operations.commit import CommitResult
    from rblstore.operations.diff import DiffResult
    from rblstore.operations.log import LogEntry
    from rblstore.operations.probe import ProbeInfo
    from rblstore.operations.progress import Progress
    from rblstore.operations.revert import RevertResult
    from rblstore.operations.show import ShowResult
    from rblstore.operations.status import CheckoutStatus, RepositoryStatus
    from rblstore.operations.switch import BranchInfo
    from rblstore.operations.tag import TagInfo
    from rblstore.operations.undo import OperationInfo, UndoResult
    from rblstore.operations.verify import VerificationResult

UNKNOWN_AUTHOR = "unknown"
TOLERANCE = 1e-6


class Repository(Models, Studies, Audits, Maintenance):
    """One open repository.

    Made by :func:`rblstore.init` or :func:`rblstore.open`; use it as a context manager, or close it.

    Every method that writes takes ``author``; without one it is the repository's configured author, else ``unknown``.
    Methods that read or write many bytes take ``progress``, a function of a
    :class:`~rblstore.operations.progress.ProgressEvent`.

    Every error is an :class:`~rblstore.errors.RblError`.

    Args:
        store: The kernel.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Repository({str(self.path)!r})"

    def close(self) -> None:
        """Closes the repository; its methods must not be called afterwards."""
        self._store.close()

    @property
    def path(self) -> Path:
        """The folder that holds ``.rbl``."""
        return self._store.root

    @property
    def head(self) -> CommitId | None:
        """The commit at HEAD, or None on a branch without commits."""
        return self._store.head()

    @property
    def branch(self) -> str:
        """The name of the branch that HEAD stands for."""
        from rblstore.repository import HEADS

        return self._store.head_branch().removeprefix(HEADS)

    def author(self, author: str | None = None) -> str:
        """Who is named where ``author`` is: the argument, else the configured author, else ``unknown``.

        Raises:
            UsageError: It is not one line of text.
        """
        return check_author(author or self._store.configuration.author or UNKNOWN_AUTHOR)

    # -- writing history ----------------------------------------------------------------------------------------

    def commit(
        self,
        message: str,
        *,
        identity: str | Path | ModelSource | None = None,
        behaviors: Mapping[str, str | Path | ModelSource] | None = None,
        remove: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
        branch: str | None = None,
        license: str | None = None,
        license_file: str | Path | None = None,
        datasets: Sequence[str] | Mapping[str, str | None] = (),
        source: str | None = None,
        base_revision: str | None = None,
        author: str | None = None,
        meta: Mapping[str, str] | None = None,
        allow_empty: bool = False,
        unloadable: bool = False,
        rebind: bool = False,
        include_opaque: bool = False,
        rehash: bool = False,
        compression: Compression | None = None,
        origin: str = "api",
        progress: Progress | None = None,
    ) -> CommitResult:
        """Commits a composition: what the branch has, with these changes.

        Args:
            message: What changed; its first line is the subject.
            identity: The base checkpoint: a directory, a transformers model, any other module (its ``state_dict``) or a
                mapping of tensors.
            behaviors: By name: for an adapter its directory, a ``PeftModel`` or :class:`rblstore.AdapterTensors`;
                for an overlay a fine-tuned checkpoint's directory, a transformers model, any other module, or a mapping
                of all tensors.
            remove: Names of behaviors to take out.
            weights: By name; a scale for additive adapters.
            branch: Where to commit; None for HEAD's branch.
            license: An SPDX expression or a hub's licence id; said, as the next ones, about everything imported here.
            license_file: A file with the terms.
            datasets: What it was trained on: ``NAME[@REV][=LICENSE]``, or licences (None: not known) by ``NAME[@REV]``.
            source: Where it comes from: ``ORG/NAME[@REV]`` of a hub, a URL, words.
            base_revision: Said about the behaviors, or an identity alone: which commit of its base it was made for.
            author: Who commits.
            meta: Anything else, by key.
            allow_empty: Whether a commit may repeat its parent's composition.
            unloadable: Whether the composition may be one that peft cannot attach.
            rebind: Whether to bind an adapter to this base although it was made for another.
            include_opaque: Whether pickles beside safetensors are kept as bytes that are never loaded.
            rehash: Whether files are read although their time stamps say that they are unchanged.
            compression: How what is new is stored: ``fast``, ``max`` or ``none``; None for what the settings say.
            origin: Where what is said comes from, for the statement.
            progress: Is told bytes read.

        Raises:
            NothingChangedError: The composition is the one already committed.
            ConflictError: Wrong base, an overlap, a moved branch, or something that others stand on.
            InputError: A file that breaks its format.
        """
        from rblstore.operations.commit import CommitRequest, commit
        from rblstore.operations.told import Told

        request = CommitRequest(
            message=message,
            author=self.author(author),
            identity=identity,
            behaviors=behaviors,
            remove=remove,
            weights=weights,
            branch=branch,
            told=Told(license, license_file, datasets, source, base_revision, meta=meta or {}),
            origin=origin,
            allow_empty=allow_empty,
            unloadable=unloadable,
            rebind=rebind,
            include_opaque=include_opaque,
            rehash=rehash,
            compression=compression,
        )
        return commit(self._store, request, progress)

    def revert(
        self,
        commit: str | None = None,
        *,
        behavior: str | None = None,
        probe: str | None = None,
        tolerance: float = TOLERANCE,
        verify: bool = True,
        require_verified: bool = False,
        mainline: int | None = None,
        message: str | None = None,
        threshold: float | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> RevertResult:
        """Makes a commit without what an earlier one added, and proves on the live model that it is gone.

        Args:
            commit: The revision to undo, or None.
            behavior: The behavior to take out, or None; exactly one of the two.
            probe: The probe's name; None for the default one. Without any probe the revert is ``unverified``.
            tolerance: KL and JS (nats) below which the verdict is within tolerance.
            verify: Whether to measure at all.
            require_verified: Whether having no probe is an error.
            mainline: For a merge, which parent to go back to, from 1.
            message: None for one that names what was reverted.
            threshold: KL (nats) above which a single prompt is flagged; None for the tolerance.
            author: Who reverts.
            progress: Is told bytes read.

        Raises:
            DivergedError: The outputs differ; no ref moved, the evidence is stored.
            ConflictError: A later commit changed the same slot, or another behavior stands on it.
        """
        from rblstore.operations.revert import RevertRequest, revert

        who = self.author(author)
        request = RevertRequest(
            who, commit, behavior, probe, tolerance, verify, require_verified, mainline, message, threshold
        )
        return revert(self._store, request, progress)

    def undo(self, operation: str | None = None, *, author: str | None = None) -> UndoResult:
        """Reverses an operation's ref changes; None for the latest that is neither undone nor an undo.

        Raises:
            ConflictError: Its refs have moved since.
            NothingChangedError: Every operation is undone already.
        """
        from rblstore.operations.undo import undo

        return undo(self._store, operation, author=self.author(author))

    # -- reading history ----------------------------------------------------------------------------------------

    def log(self, revision: str = "HEAD", *, limit: int | None = None, all: bool = False) -> list[LogEntry]:
        """Commits, children before their parents.

        Args:
            revision: Where to start.
            limit: The most to give.
            all: Whether to start from every branch and tag besides.
        """
        from rblstore.operations.log import log

        return log(self._store, revision, limit=limit, every=all)

    def show(self, revision: str = "HEAD") -> ShowResult:
        """One object of any kind, by revision, probe name or id, with what is said and proved about it."""
        from rblstore.operations.show import show

        return show(self._store, revision)

    def diff(self, a: str = "HEAD^", b: str = "HEAD") -> DiffResult:
        """What two commits compose differently, slot by slot and tensor by tensor."""
        from rblstore.operations.diff import diff

        return diff(self._store, a, b)

    def status(self, directory: str | Path | None = None) -> RepositoryStatus | CheckoutStatus:
        """What HEAD stands for, or whether a checkout directory is still what was checked out."""
        from rblstore.operations.status import checkout_status, status

        return status(self._store) if directory is None else checkout_status(self._store, given_path(directory))

    def operations(self, limit: int | None = None) -> list[OperationInfo]:
        """The operation log, newest first."""
        from rblstore.operations.undo import operations

        return operations(self._store, limit)

    def resolve(self, revision: str) -> CommitId:
        """The commit that a revision names.

        Raises:
            NotFoundError: None does.
        """
        from rblstore.revisions import resolve

        return resolve(self._store, revision).commit

    # -- branches and tags --------------------------------------------------------------------------------------

    def branches(self) -> list[BranchInfo]:
        """Every branch, sorted by name."""
        from rblstore.operations.switch import branches

        return branches(self._store)

    def create_branch(self, name: str, start: str = "HEAD", *, author: str | None = None) -> BranchInfo:
        """Makes a branch at a revision, without switching to it."""
        from rblstore.operations.switch import create_branch

        return create_branch(self._store, name, start, author=self.author(author))

    def delete_branch(self, name: str, *, author: str | None = None) -> BranchInfo:
        """Deletes a branch; its commits stay."""
        from rblstore.operations.switch import delete_branch

        return delete_branch(self._store, name, author=self.author(author))

    def switch(
        self, name: str, *, create: bool = False, orphan: bool = False, start: str = "HEAD", author: str | None = None
    ) -> BranchInfo:
        """Makes HEAD stand for a branch; see :func:`rblstore.operations.switch.switch`."""
        from rblstore.operations.switch import switch

        return switch(self._store, name, create=create, orphan=orphan, start=start, author=self.author(author))

    def tags(self) -> list[TagInfo]:
        """Every tag, sorted by name."""
        from rblstore.operations.tag import tags

        return tags(self._store)

    def create_tag(self, name: str, revision: str = "HEAD", *, message: str = "", author: str | None = None) -> TagInfo:
        """Tags a commit."""
        from rblstore.operations.tag import create_tag

        return create_tag(self._store, name, revision, message=message, author=self.author(author))

    def delete_tag(self, name: str, *, author: str | None = None) -> TagInfo:
        """Deletes a tag's name."""
        from rblstore.operations.tag import delete_tag

        return delete_tag(self._store, name, author=self.author(author))

    # -- composing ----------------------------------------------------------------------------------------------

    def checkout(
        self,
        revision: str,
        target: str | Path,
        *,
        form: CheckoutForm = "adapters",
        only: str | Sequence[str] | None = None,
        tensors: str | Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> CheckoutResult:
        """Writes the composition of a commit, or a part, into a new or empty directory; every digest is verified.

        Args:
            revision: Which commit. HEAD does not move.
            target: The directory.
            form: ``adapters`` (identity, with its behaviors beside it) or ``merged`` (one plain checkpoint).
            only: Patterns of paths: nothing but these files, as ``adapters`` has them. See ``docs/cli.md``.
            tensors: Patterns of tensors' names: nothing but these, in ``tensors.safetensors``, and ``only``.
            progress: Is told bytes written.
        """
        from rblstore.operations.checkout import checkout

        directory = given_path(target)
        return checkout(self._store, revision, directory, form=form, only=only, tensors=tensors, progress=progress)

    # -- proving ------------------------------------------------------------------------------------------------

    def add_probe(
        self,
        name: str,
        prompts: str | Path | Sequence[Any],
        *,
        revision: str = "HEAD",
        positions: Positions = "all",
        batch: int = 1,
        default: bool = False,
        force: bool = False,
        author: str | None = None,
    ) -> ProbeInfo:
        """Fixes prompts as token ids under a name; see :func:`rblstore.operations.probe.add_probe`."""
        from rblstore.operations.probe import add_probe

        who = self.author(author)
        return add_probe(
            self._store,
            name,
            prompts,
            revision=revision,
            positions=positions,
            batch=batch,
            default=default,
            force=force,
            author=who,
        )

    def probes(self) -> list[ProbeInfo]:
        """Every probe, sorted by name."""
        from rblstore.operations.probe import probes

        return probes(self._store)

    def baseline(
        self,
        revision: str = "HEAD",
        *,
        probe: str | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> BaselineResult:
        """Measures a commit under a probe and records its outputs, unless this environment has them already."""
        from rblstore.operations.baseline import baseline

        return baseline(self._store, revision, probe, author=self.author(author), progress=progress)

    def baselines(self) -> list[BaselineResult]:
        """Every recorded baseline, oldest first."""
        from rblstore.operations.baseline import baselines

        return baselines(self._store)

    def verify(
        self,
        revision: str = "HEAD",
        *,
        probe: str | None = None,
        against: str | None = None,
        tolerance: float = TOLERANCE,
        threshold: float | None = None,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> VerificationResult:
        """Measures a commit and compares it with its baseline, or with another commit's.

        Args:
            revision: Which commit to measure.
            probe: The probe's name; None for the default one.
            against: The commit whose baseline is the reference; None for the same commit's.
            tolerance: What the upper ends of the 95 % intervals of KL and JS have to be below (nats), unless bit-equal.
            threshold: KL (nats) above which a single prompt is flagged; None for the tolerance.
            author: Who.
            progress: Is told bytes read.

        Raises:
            DivergedError: The outputs differ; the evidence is stored.
            NotFoundError: There is no baseline, or no probe.
        """
        from rblstore.operations.verify import verify

        who = self.author(author)
        return verify(
            self._store,
            revision,
            probe,
            against=against,
            tolerance=tolerance,
            threshold=threshold,
            author=who,
            progress=progress,
        )
