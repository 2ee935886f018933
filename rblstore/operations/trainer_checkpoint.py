"""A commit as the checkpoint folder that ``transformers.Trainer`` resumes from.

The Trainer reads optimizer, scheduler and random state from files that are pickles. They are written here, from states
that were stored without one and whose digests were compared; nothing here reads a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from rblstore.checkpoints.checkout_layout import behavior_folder
from rblstore.checkpoints.checkout_writer import DirectoryWriter
from rblstore.errors import ConflictError
from rblstore.objects.content_records import Behavior
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId
from rblstore.operations.checkout import plan
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.scratch import scratch
from rblstore.operations.stored_models import source_size
from rblstore.operations.training_state import load_state
from rblstore.operations.writing import write_files
from rblstore.repository import Store
from rblstore.revisions import resolve

TRAINER_KEY: Final = "trainer"
"""Where a state's ``extra`` has what only the Trainer knows: its ``state``, and the name of the behavior."""


class NotATrainerStateError(ConflictError):
    """A commit's training state was not stored by the callback of a Trainer."""

    code: ClassVar[str] = "not_a_trainer_state"


@dataclass(frozen=True)
class TrainerCheckpoint:
    """A folder for ``Trainer.train(resume_from_checkpoint=...)``.

    Attributes:
        folder: Its path.
        commit: The commit that it was made from.
        tree: The training state.
    """

    folder: Path
    commit: CommitId
    tree: Mapping[str, Any]


@contextmanager
def trainer_checkpoint(store: Store, revision: str, progress: Progress | None = None) -> Iterator[TrainerCheckpoint]:
    """Lays a commit out as a Trainer's checkpoint, for as long as the block lasts.

    Args:
        store: The repository.
        revision: A commit that was made with ``save_state=True`` by the callback.
        progress: Is told bytes read.

    Raises:
        NoStateError: The commit has no training state.
        NotATrainerStateError: It has one of another kind of loop.
        CorruptError: Stored bytes are damaged.
    """
    commit = resolve(store, revision).commit
    tree = load_state(store, commit, progress=progress)
    known = tree.get("extra") if isinstance(tree, dict) else None
    trainer = known.get(TRAINER_KEY) if isinstance(known, dict) else None
    if not isinstance(trainer, dict) or not {"behavior", "state"} <= trainer.keys():
        raise NotATrainerStateError(
            f"the training state of commit {commit.short} is not that of a Trainer",
            object=commit,
            hint="Read it with repo.load_state, and put it back with rblstore.restore_state.",
        )
    composition = store.record(store.record(commit, Commit).composition, Composition)
    slot = composition.slot(trainer["behavior"])
    if slot is None:
        raise NotATrainerStateError(
            f"commit {commit.short} has no behavior {trainer['behavior']!r}, which its training state is about",
            object=trainer["behavior"],
        )
    prefix = ""
    if store.record(slot.behavior, Behavior).form == "adapter":
        prefix = f"{behavior_folder(slot.name)}/"
        files = [file for file in plan(store, composition) if file.owner == slot.name]
    else:
        # What lies above the overlay is no part of what was trained.
        below = Composition(composition.identity, composition.slots[: composition.slots.index(slot) + 1])
        files = [file for file in plan(store, below) if file.owner is None]
    files = [replace(file, path=file.path.removeprefix(prefix)) for file in files]
    with scratch(store, "resume") as above:
        folder = above / f"checkpoint-{trainer['state']['global_step']}"
        with DirectoryWriter(folder) as writer:
            meter = Meter(progress, sum(source_size(file.source) for file in files))
            write_files(store, writer, files, meter, "writing")
            writer.commit()
        _write_state(folder, tree, trainer)
        yield TrainerCheckpoint(folder, commit, tree)


def _write_state(folder: Path, tree: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    import torch

    text = json.dumps(trainer["state"], indent=2, sort_keys=True) + "\n"
    (folder / "trainer_state.json").write_text(text, encoding="utf-8")
    for part, name in (("optimizer", "optimizer.pt"), ("scheduler", "scheduler.pt")):
        if part in tree:
            torch.save(tree[part]["state"], folder / name)
    if tree.get("scaler"):
        torch.save(tree["scaler"], folder / "scaler.pt")
    random = tree.get("random")
    if random is not None:
        states = {"python": random["python"], "numpy": random["numpy"], "cpu": random["torch"]}
        if random.get("cuda"):
            # One process reads one state; which device it runs on is written down beside them.
            states["cuda"] = random["cuda"][min(trainer.get("device", 0), len(random["cuda"]) - 1)]
        torch.save(states, folder / "rng_state.pth")
