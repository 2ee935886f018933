"""What the public repository does with models in memory: load them, bind them, guard them, follow their training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from rblstore.repository import Store

if TYPE_CHECKING:
    import torch

    from rblstore.configuration import Compression
    from rblstore.live.guard import IdentityGuard, OnMutation
    from rblstore.operations.live_form import LiveForm
    from rblstore.operations.live_model import LiveModel
    from rblstore.operations.progress import Progress
    from rblstore.operations.training import TrainingRun
    from rblstore.operations.training_facts import OnBusy
    from rblstore.operations.training_state import StateDetail, StateInfo


class Models:
    """What :class:`rblstore.Repository` does with models in memory.

    Methods that write need :meth:`rblstore.Repository.author`, which the repository has.
    """

    _store: Store

    if TYPE_CHECKING:

        def author(self, author: str | None = None) -> str: ...

    def tensor(self, revision: str, name: str) -> torch.Tensor:
        """One tensor of a commit's checkpoint, overlays laid on and adapters not; its digest is verified."""
        from rblstore.operations.tensor import tensor

        return tensor(self._store, revision, name)

    def load(self, revision: str = "HEAD", *, progress: Progress | None = None, **options: Any) -> Any:
        """The composition of a commit as a transformers model, behaviors attached through peft.

        Args:
            revision: Which commit.
            progress: Is told bytes read.
            options: ``dtype``, ``device``, ``attn_implementation``.

        Returns:
            A ``PreTrainedModel``, or a ``PeftModel`` where there are behaviors, in evaluation mode.
        """
        from rblstore.operations.load import load

        return load(self._store, revision, progress=progress, **options)

    def training_states(self, revision: str | None = None) -> list[StateInfo]:
        """The training states of a commit, or of all of them, in the order in which they were stored."""
        from rblstore.operations.training_state import states

        return states(self._store, revision)

    def training_state(self, revision: str = "HEAD") -> StateDetail:
        """What a training state holds: a commit's latest, or the one of an id. No tensor is read.

        Raises:
            NotFoundError: The commit has none.
        """
        from rblstore.operations.training_state import describe_state

        return describe_state(self._store, revision)

    def load_state(self, revision: str = "HEAD", *, progress: Progress | None = None) -> Any:
        """A training state, as :func:`rblstore.capture_state` gave it; every digest is verified.

        Args:
            revision: A commit, whose latest state it is, or a state's id.
            progress: Is told bytes read.

        Raises:
            NotFoundError: The commit has none.
        """
        from rblstore.operations.training_state import load_state

        return load_state(self._store, revision, progress=progress)

    def store_state(
        self,
        tree: Any,
        revision: str = "HEAD",
        *,
        step: int = 0,
        author: str | None = None,
        progress: Progress | None = None,
    ) -> StateInfo:
        """Keeps a training state beside a commit, for as long as the commit lives.

        Args:
            tree: What :func:`rblstore.capture_state` gave, or any tree of plain values and tensors.
            revision: The commit that was made in this state.
            step: Optimizer steps done.
            author: Who.
            progress: Is told bytes.

        Raises:
            UsageError: The tree holds something that could only be pickled; the error says where.
        """
        from rblstore.operations.training_state import state_info, store_state
        from rblstore.revisions import resolve

        commit = resolve(self._store, revision).commit
        who = self.author(author)
        stored = store_state(self._store, commit, tree, step=step, author=who, progress=progress)
        return state_info(self._store, stored)

    def attach(
        self,
        model: Any,
        revision: str = "HEAD",
        *,
        form: LiveForm | None = None,
        cache_bytes: int | None = None,
        probe: str | None = None,
        author: str | None = None,
        allow_no_effect: bool = False,
        progress: Progress | None = None,
    ) -> LiveModel:
        """Binds a model in memory to a commit: from then on behaviors are put on, taken off and switched exactly.

        Args:
            model: The commit's model, its behaviors attached by :meth:`load` or by peft, or merged; or what lies
                beneath them, which they are then put on. Any ``torch.nn.Module`` whose names match.
            revision: Which commit.
            form: ``adapters`` or ``merged``; None for the form that the model has.
            cache_bytes: Memory for tensors that behaviors touch and for adapters taken off; None for 512 MiB.
            probe: Name or id of the probe that attaching and verifying measure.
            author: Who is named in what is recorded.
            allow_no_effect: Whether behaviors that are put on may change no output on the probe.
            progress: Is told bytes read.

        Raises:
            ConflictError: The model is not the commit's, which every tensor is compared for; or it cannot be bound.
        """
        from rblstore.operations.live_attaching import CACHE_BYTES, attach_model

        return attach_model(
            self._store,
            model,
            revision,
            form=form,
            cache_bytes=CACHE_BYTES if cache_bytes is None else cache_bytes,
            probe=probe,
            author=self.author(author),
            allow_no_effect=allow_no_effect,
            progress=progress,
        )

    def guard(
        self,
        model: Any,
        revision: str | None = "HEAD",
        *,
        every: int = 1,
        sample: int | None = None,
        on_mutation: OnMutation = "raise",
        background: bool = True,
        threads: int = 1,
        compare: bool = True,
    ) -> IdentityGuard:
        """Watches a live model's tensors that belong to a commit's identity, and says when training writes into them.

        A context manager: ``step()`` once a step of training, ``check()`` whenever you like; the end of its block
        checks in full.

        Args:
            model: A transformers model, a PEFT model around one, or any module whose names match.
            revision: Which commit; None to watch every tensor of the plain model.
            every: Check at every N-th step.
            sample: Bytes that such a check reads, in turn, beside what looks suspicious; None for everything.
            on_mutation: ``raise`` an :class:`rblstore.IdentityMutated`, or ``record`` only, in ``findings``.
            background: Whether threads do the reading; what they find is raised by a later step, and at the end.
            threads: How many threads read.
            compare: Whether to compare the tensors with the stored ones first.

        Raises:
            ConflictError: The model is not what was committed, or cannot be watched.
        """
        from rblstore.operations.guarding import guard_model

        return guard_model(
            self._store,
            model,
            revision,
            every=every,
            sample=sample,
            on_mutation=on_mutation,
            background=background,
            threads=threads,
            compare=compare,
        )

    def training(
        self,
        model: Any,
        behavior: str,
        *,
        every: int = 100,
        branch: str | None = None,
        probe: str | None = None,
        verify_at_end: bool = False,
        guard: bool | Literal["record"] = True,
        guard_every: int = 10,
        on_busy: OnBusy = "block",
        message: str | None = None,
        meta: Mapping[str, str] | None = None,
        dataset: str | None = None,
        dataset_license: str | None = None,
        license: str | None = None,
        author: str | None = None,
        optimizer: Any = None,
        scheduler: Any = None,
        save_state: bool = False,
        seed: int | None = None,
        resume: str | None = None,
        compression: Compression | None = None,
    ) -> TrainingRun:
        """A training run that commits a behavior from memory: every N steps, whenever you like, and at the end.

        A context manager: ``run.step(loss=...)`` once a step. A commit keeps the loop waiting for a copy of what is
        trained; everything else happens in a thread behind it. See ``docs/training.md``.

        Args:
            model: A ``PeftModel``, whose adapter of that name (or only one) is committed; or a model that is trained
                itself, which is committed as an overlay.
            behavior: The slot's name.
            every: Commit at every N-th step.
            branch: Where to commit; None for HEAD's branch as it is when the run starts.
            probe: For ``verify_at_end``; None for the default one.
            verify_at_end: Whether to measure the last commit and verify it.
            guard: Whether to watch the tensors that are not trained: True raises, ``record`` keeps what it finds.
            guard_every: Watch at every N-th step.
            on_busy: Where a snapshot is waiting already: ``block`` until it is being written, or ``skip`` this one.
            message: What messages begin with; None for the behavior's name.
            meta: Said about every behavior that is committed, by key.
            dataset: What it is trained on.
            dataset_license: The dataset's licence.
            license: The behavior's own licence.
            author: Who trains.
            optimizer: For the learning rate, and for ``save_state``.
            scheduler: For ``save_state``.
            save_state: Whether each commit carries the state of optimizer, scheduler and random generators.
            seed: Recorded; seeding is up to you.
            resume: A commit whose behavior, and state where it has one, is loaded before the first step.
            compression: How commits are stored: ``fast``, ``max`` or ``none``; None for ``none`` where an adapter is
                trained, and for what the settings say otherwise. ``repack`` makes it smaller later.

        Raises:
            UsageError: A setting is out of range.
        """
        from rblstore import __version__
        from rblstore.operations.training import TrainingRun
        from rblstore.operations.training_facts import TrainingOptions

        options = TrainingOptions(
            behavior,
            self.author(author),
            every=every,
            branch=branch,
            probe=probe,
            verify_at_end=verify_at_end,
            guard=guard,
            guard_every=guard_every,
            on_busy=on_busy,
            message=message,
            meta=dict(meta or {}),
            dataset=dataset,
            dataset_license=dataset_license,
            license=license,
            optimizer=optimizer,
            scheduler=scheduler,
            save_state=save_state,
            seed=seed,
            resume=resume,
            compression=compression,
            version=__version__,
        )
        return TrainingRun(self._store, model, options)
