"""What a training run is made of when it starts: the pinned branch, the checks of the model, the guard, the resume."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rblstore.checkpoints.composition_ground import shown
from rblstore.checkpoints.overlay_effects import require_kin
from rblstore.checkpoints.plain_view import plain_model, plain_tensors
from rblstore.checkpoints.saving import UnsavableError, config_meaning
from rblstore.checkpoints.saving_overlay import keep_stored_settings
from rblstore.errors import LockedError, UsageError
from rblstore.live.binding import differing_ground
from rblstore.live.snapshot import Buffers, PhiCopier, Snapshot
from rblstore.live.watching import check_readable, model_within
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.content_records import Behavior
from rblstore.objects.ids import CommitId
from rblstore.operations.commit import CommitResult, NoIdentityError
from rblstore.operations.importing import LiveBaseError
from rblstore.operations.scratch import scratch
from rblstore.operations.snapshot_commit import Settled, SnapshotCommitter
from rblstore.operations.stored_models import ADAPTER_CONFIG
from rblstore.operations.training_facts import Progressed, TrainingOptions, library_claims
from rblstore.repository import HEADS, Store, utc_now

if TYPE_CHECKING:
    from torch import nn

    from rblstore.live.guard import IdentityGuard
    from rblstore.operations.verify import VerificationResult

_SETTINGS: Final = ("config.json", "generation_config.json")
_IN_TRAINING: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def in_training(plain: nn.Module) -> bool:
    """Whether a training run that has started, and has not ended, commits what lies on this plain model."""
    return plain in _IN_TRAINING


class NothingTrainableError(UsageError):
    """A model of which no parameter is trained."""

    code: ClassVar[str] = "nothing_trainable"


class ModelInTrainingError(LockedError):
    """Another run commits this model already."""

    code: ClassVar[str] = "model_in_training"


class Training:
    """A run that has started; made by :func:`prepare`.

    Attributes:
        model: What is trained, seen through ``torch.compile`` and data parallelism.
        branch: Where commits go.
        copier: Takes snapshots.
        committer: Commits them.
        guard: Watches what is not trained, or None.
        said: Key and value of what the run says about every behavior.
        resumed: How far it was before.
        closed: Whether it has ended.
    """

    def __init__(self, store: Store, model: nn.Module, options: TrainingOptions) -> None:
        self._store = store
        self._options = options
        self._ending = ExitStack()
        self.model = model
        self.guard: IdentityGuard | None = None
        self.closed = False
        self.resumed = Progressed(options.done)
        self._settled: tuple[Mapping[str, bytes], Settled] | None = None
        self._bound: Behavior | None = None
        self._identity: str | None = None
        self._config_before: bytes | None = None
        self.copier = PhiCopier(model, self._adapter_name(), partial(scratch, store, "save"))
        ref = store.head_branch() if options.branch is None else HEADS + options.branch
        value = store.ref(ref)
        if value is None:
            raise NoIdentityError(
                f"the branch {ref.removeprefix(HEADS)} has no identity yet",
                object=ref,
                hint="Commit what is trained on first: repo.commit('base', identity=...)",
            )
        self.branch = ref.removeprefix(HEADS)
        # A repository of its own: one transaction at a time is what an open one takes, and whoever trains may want it.
        own = Store.open(store.root, allow_foreign=True)
        try:
            # Adapters are small and shrink by little; what is not computed beside a loop does not slow it down.
            compression = options.compression or ("none" if self.copier.is_adapter else None)
            self.committer = SnapshotCommitter(own, ref, CommitId(value), options.behavior, options.author, compression)
        except BaseException:
            own.close()
            raise
        self._ending.callback(_IN_TRAINING.discard, plain_model(model))
        self.said = [
            ("meta.device", _device(model)),
            ("meta.method", self._method()),
            ("meta.run_started", utc_now()),
            *([] if options.seed is None else [("meta.seed", str(options.seed))]),
            *library_claims(options.version),
        ]

    def _method(self) -> str:
        """PEFT's name for the kind of adapter; ``full`` or ``partial`` fine-tuning by what is trained."""
        if self.copier.is_adapter:
            kind = getattr(self.model, "peft_config")[self.copier.adapter].peft_type  # noqa: B009 - a PeftModel's
            return str(getattr(kind, "value", kind))
        return "full" if all(parameter.requires_grad for parameter in self.model.parameters()) else "partial"

    def _adapter_name(self) -> str | None:
        several = len(getattr(self.model, "peft_config", ())) > 1
        return self._options.behavior if several else None

    # -- the start ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Resumes, checks the model against what was committed, and sets the guard."""
        if self._options.resume is not None:
            from rblstore.operations.training_resume import resume

            self.resumed, said = resume(self._store, self.copier, self._options)
            self.said.append(("meta.resumed_from", said))
        if self.copier.is_adapter:
            self._before()
            snapshot = self.copier.take(Buffers())
            self._bound = self.committer.rehearse(snapshot, self.settle(snapshot))
            self.check_base()
        else:
            own = [name for name, _ in self.model.named_parameters()]  # tied ones by the name that is saved
            require_kin(self._options.behavior, own, self.committer.beneath_overlay)
        self.guard = self._watch()
        if self.guard is not None:
            self._ending.callback(self.guard.stop)

    def _before(self) -> None:
        slot = self.committer.slot
        if slot is not None and self.committer.store.record(slot.behavior, Behavior).form == "adapter":
            self._config_before = self.committer.stored_file(ADAPTER_CONFIG)

    def check_base(self) -> None:
        """Compares what the adapter stands on with what was committed.

        Raises:
            LiveBaseError: It is something else, or was written to.
        """
        if self._bound is None:
            return
        if differing := differing_ground(self.model, self._bound.grounds):
            name = self._options.behavior
            raise LiveBaseError(
                f"the model that carries {name!r} has another base than the one committed: {shown(differing)} differ",
                object=name,
                hint="Train on the branch of its own base. If training wrote to the base, the guard says when.",
            )

    def check_guard(self) -> None:
        """A last full check by the guard; whether the identity is what it was is then said, too.

        Raises:
            IdentityMutated: It is not.
        """
        if self.guard is not None:
            self.guard.check()
            if self._identity is not None and not self.guard.findings:
                self.said.append(("meta.identity_after", self._identity))

    def _watch(self) -> IdentityGuard | None:
        options = self._options
        if options.guard is False:
            return None
        on_mutation = "record" if options.guard == "record" else "raise"
        if self.copier.is_adapter:
            from rblstore.operations.guarding import guard_model

            slot = self.committer.slot
            form = None if slot is None else self.committer.store.record(slot.behavior, Behavior).form
            guard = guard_model(
                self._store,
                self.model,
                self.committer.parent,
                every=options.guard_every,
                on_mutation=on_mutation,  # type: ignore[arg-type]
                compare=form != "overlay",
            )
            if form != "overlay":
                self._identity = self.committer.tensor_root
                self.said.append(("meta.identity_before", self._identity))
            return guard
        from torch import nn

        from rblstore.live.guard import IdentityGuard

        still = [
            name
            for name, tensor in plain_tensors(self.model).items()
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        ]
        return IdentityGuard(self.model, still, every=options.guard_every, on_mutation=on_mutation) if still else None  # type: ignore[arg-type]

    # -- during the run -----------------------------------------------------------------------------------------

    def capture(self) -> Any:
        """The state of optimizer, scheduler and random generators, copied."""
        from rblstore.checkpoints.state_tree import copied_tree
        from rblstore.operations.training_state import capture

        options = self._options
        if options.capture is not None:
            return copied_tree(options.capture())
        return copied_tree(capture(options.optimizer, options.scheduler))

    def settle(self, snapshot: Snapshot) -> Settled:
        """A snapshot's files without tensors as they are stored: in their earlier text, where they say the same.

        In the thread that trains: the libraries that read these files change settings of the whole process meanwhile.
        """
        if self._settled is None or self._settled[0] != snapshot.files:
            settled = self._settle_adapter(snapshot) if snapshot.adapter else self._settle_checkpoint(snapshot)
            self._settled = snapshot.files, settled
        return self._settled[1]

    def _settle_adapter(self, snapshot: Snapshot) -> Settled:
        files = dict(snapshot.files)
        before = self._config_before
        if before is not None and _meaning(files[ADAPTER_CONFIG]) == _meaning(before):
            files[ADAPTER_CONFIG] = before
        self._config_before = files[ADAPTER_CONFIG]
        return Settled.of(files)

    def _settle_checkpoint(self, snapshot: Snapshot) -> Settled:
        if "config.json" not in snapshot.files:
            return Settled.of(snapshot.files)
        found = []
        for kept in (True, False):
            with scratch(self._store, "settings") as folder:
                made, stored = folder / "made", folder / "stored"
                made.mkdir()
                stored.mkdir()
                for path in _SETTINGS:
                    if path in snapshot.files:
                        (made / path).write_bytes(snapshot.files[path])
                    if (sha256 := self.committer.beneath_overlay.files.get(path)) is not None:
                        (stored / path).write_bytes(self._store.content_bytes(sha256, limits.RECORD_BYTES))
                keep_stored_settings(made, stored, dtypes_kept=kept)
                settings = {path: (made / path).read_bytes() for path in _SETTINGS if (made / path).is_file()}
            others = {path: data for path, data in snapshot.files.items() if path not in _SETTINGS}
            found.append({**others, **settings})
        return Settled.of(*found)

    # -- the end ------------------------------------------------------------------------------------------------

    def verify(self, commits: Sequence[CommitResult]) -> VerificationResult:
        """Measures the last commit and verifies it against its own baseline.

        Raises:
            DivergedError: Measured twice, it differs.
            NotFoundError: There is no probe.
        """
        from rblstore.operations.baseline import baseline
        from rblstore.operations.verify import verify

        options = self._options
        revision = commits[-1].commit if commits else self.committer.parent
        baseline(self._store, revision, options.probe, author=options.author)
        return verify(self._store, revision, options.probe, author=options.author)

    def close(self) -> None:
        """Ends the guard, and lets others train the model. The committer is closed by whoever commits."""
        self.closed = True
        self.copier.forget()
        self._ending.close()


def prepare(store: Store, given: Any, options: TrainingOptions) -> Training:
    """Starts a run.

    Args:
        store: The repository.
        given: The model.
        options: How it is set.

    Raises:
        UnsavableError: No model, or one that cannot be saved.
        UnguardableError: Tensors are on the meta device, sharded or sparse.
        NothingTrainableError: No parameter is trained.
        ModelInTrainingError: It is in another run.
        NoIdentityError: The branch has no commit.
        LiveBaseError: It stands on another base than the branch's.
        WrongBaseError: The behavior does not fit what lies beneath it.
    """
    from torch import nn

    if not isinstance(given, nn.Module):
        raise UnsavableError(
            f"a {type(given).__name__} is no model to train", object=type(given).__name__, hint="Give the nn.Module."
        )
    model = model_within(given)
    check_readable([*model.named_parameters(), *model.named_buffers()])
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise NothingTrainableError(
            f"no parameter of the {type(model).__name__} is trained",
            object=type(model).__name__,
            hint="What rblstore loads is for use; to train it, set requires_grad on what is to be trained.",
        )
    plain = plain_model(model)
    if in_training(plain):
        raise ModelInTrainingError(
            f"the {type(plain).__name__} is in another training run",
            object=type(plain).__name__,
            hint="End that run first; one run commits one behavior.",
        )
    training = Training(store, model, options)
    _IN_TRAINING.add(plain)
    try:
        training.begin()
    except BaseException:
        training.close()
        training.committer.close()
        raise
    return training


def _device(model: nn.Module) -> str:
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    return ", ".join(devices)


def _meaning(config: bytes) -> Any:
    body = decode_json(config, what=ADAPTER_CONFIG, max_bytes=limits.ADAPTER_CONFIG_BYTES)
    return config_meaning(body) if isinstance(body, dict) else body
