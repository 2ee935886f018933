"""A whole repository against a dictionary and a list, through any order of everything that can be done with one.

Time passes by a clock of the test's own, for records and for files alike. Nothing is acknowledged that the model does
not have, and nothing that the model reaches is ever gone: not after a gc, a repack, a restore, or a catalog made anew.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import datetime, timedelta, tzinfo
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints as tiny
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from repository_model import HEADS, SYMBOLIC, TAGS, Composed, Model, subject
from sqlalchemy import Engine, create_engine
from trials import FULL, Trials

import rblstore
from rblstore import repository
from rblstore.catalog import engine
from rblstore.errors import ConflictError, LockedError, NotFoundError, NothingChangedError, UsageError
from rblstore.storage import disk, locks

BASES, ADAPTERS, OVERLAYS = 2, 4, 2
SLOTS = ("x", "y")
BRANCHES = ("main", "a", "b")
GRACE, WINDOW = 14, 30
# No sum of these is the grace or the window.
DAYS = (2.3, 17.1, 41.7, 41.7, 41.7)
CHUNK = 100
STEPS = (
    *("commit", "commit", "commit", "abandon", "abandon", "refs", "refs", "undo", "revert", "checkout"),
    *("gc", "gc", "gc", "gc beside a commit", "gc before a lock", "gc after a plan", "start over", "storage", "time"),
)
# Where there is memory to write to, it is quick to make durable.
ROOM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

counts: Counter[str] = Counter()


class Clock:
    """The test's own days, on top of the seconds that really pass."""

    days = 0.0
    began = time.time()

    @classmethod
    def seconds(cls) -> float:
        return time.time() + 86_400 * cls.days

    @classmethod
    def date(cls, folder: Path) -> None:
        """Gives files that were written or moved just now the test's own time."""
        if not cls.days:
            return
        for path in folder.glob("*/*/*.pack"):
            found = path.stat().st_mtime
            if cls.began - 60 < found < cls.began + 86_400:
                os.utime(path, (found + 86_400 * cls.days,) * 2)


class OwnTime(datetime):
    @classmethod
    def now(cls, zone: tzinfo | None = None) -> Any:
        return datetime.now(zone) + timedelta(days=Clock.days)


@pytest.fixture(autouse=True)
def own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "datetime", OwnTime)
    monkeypatch.setattr(disk, "file_system_time", lambda folder: Clock.seconds())
    monkeypatch.setattr(locks, "MAINTENANCE_WAIT_SECONDS", 0.0)
    compiled: dict[Any, Any] = {}
    dialect = create_engine("sqlite://").dialect

    def sharing(*arguments: Any, **options: Any) -> Engine:
        """Statements compiled for one repository serve the next, which takes half of the time."""
        made = create_engine(*arguments, **options)
        made.dialect = dialect
        made._compiled_cache = compiled
        return made

    monkeypatch.setattr(engine, "create_engine", sharing)


def kept_folder() -> Path:
    """A folder that goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="rbl-model-", dir=ROOM))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def sources() -> dict[str, Path]:
    """Every checkpoint and adapter that is ever committed, by name."""
    folder = kept_folder()
    made = {}
    for base in range(BASES):
        # Large enough for a head that differs little to be stored as a difference.
        plain = tiny.values(512, tiny.WIDTH, seed=1000 + base)
        made[f"b{base}"] = tiny.write_base(folder / f"b{base}", seed=base, lm_head__weight=plain)
        for number in range(OVERLAYS):
            data = bytes(byte ^ (at % 40 == 4 * number) for at, byte in enumerate(plain.data))
            head = plain._replace(data=data)
            made[f"b{base}o{number}"] = tiny.write_base(folder / f"b{base}o{number}", seed=base, lm_head__weight=head)
    for number in range(ADAPTERS):
        made[f"a{number}"] = tiny.write_adapter(folder / f"a{number}", seed=number + 1, layers=1)
    return made


@cache
def digests(source: str) -> dict[str, str]:
    return tiny.digests(sources()[source])


def files_of(composed: Composed) -> dict[str, str]:
    """Every file of a checkout and its digest."""
    found = dict(digests(composed.base))
    for part in composed.parts:
        overlay = "o" in part.source
        folder = "" if overlay else f"behaviors/{part.name}/"
        found.update({folder + path: digest for path, digest in digests(part.source).items()})
    return found


@cache
def template() -> tuple[Path, Model]:
    """A repository with something of everything, to be copied, and its model."""
    machine = Repositories()
    atexit.register(shutil.rmtree, machine.folder, ignore_errors=True)
    rblstore.init(machine.store).close()
    configuration = machine.store / ".rbl" / "config.toml"
    text = configuration.read_text()
    for setting, other in (("threads = 0", "threads = 1"), ("operations = 90", f"operations = {WINDOW}")):
        assert setting in text
        text = text.replace(setting, other)
    configuration.write_text(text)
    with rblstore.open(machine.store) as machine.repo:
        machine.model.do("init", {"HEAD": (None, f"{SYMBOLIC}{HEADS}main")})
        machine.commit_identity(None, 0)
        machine.commit_adapter(None, "x", 0)
        machine.commit_overlay(None, 0)
        machine.compare()
    return machine.store, machine.model


@contextmanager
def quietly(*losing: type[BaseException]) -> Iterator[None]:
    """Lets an operation be refused that may be; whatever it did then shows in the next comparison."""
    try:
        yield
    except losing as error:
        counts[f"refused: {error.code}"] += 1  # type: ignore[attr-defined]


class Repositories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        Clock.days = 0.0
        self.folder = Path(tempfile.mkdtemp(prefix="rbl-model-", dir=ROOM))
        self.store = self.folder / "store"
        self.model = Model()
        self.words = self.steps = 0
        counts["repositories"] += 1

    @initialize()
    def create(self) -> None:
        store, model = template()
        shutil.copytree(store, self.store)
        self.model = deepcopy(model)
        self.repo = rblstore.open(self.store)

    # One rule: of several, Hypothesis leaves some out of each run, and so what needs three of them never comes.
    # And what it draws is mostly like what it drew before, which is not what anybody does with a repository.
    @rule(moment=st.integers(0, (1 << 32) - 1))
    def step(self, moment: int) -> None:
        self.steps += 1
        data = random.Random(f"{moment} {self.steps}")  # it likes to draw one number many times

        def choose(*values: Any) -> Any:
            return data.choice(values)

        what = choose(*STEPS)
        note(what)
        counts[what] += 1
        branch, number, slot = choose(None, *BRANCHES), choose(*range(ADAPTERS)), choose(*SLOTS)
        if what == "commit":
            kind = choose("identity", "adapter", "adapter", "overlay", "weight", "without")
            self.commit_something(data, branch, kind)
        elif what == "revert":
            self.revert(choose(None, *SLOTS))
        elif what == "refs":
            self.move_refs(data, choose("create", "delete", "there", "switch", "orphan", "tag", "untag"))
        elif what == "undo":
            self.undo(data)
        elif what == "abandon":
            self.abandon(number, choose(0.0, *DAYS))
        elif what == "checkout":
            self.checkout(data, choose(None, "*.json", "behaviors/x/*"))
        elif what == "storage":
            self.change_storage(choose("reopen", "repack", "reindex"), choose("fast", "none", "max"))
        elif what == "time":
            self.time_passes(choose(*DAYS))
        elif what == "gc":
            self.collect_something(
                choose(0.0, *DAYS), choose("look", "grace", "grace", "at once", "at once", "restore")
            )
        elif what == "gc beside a commit":
            self.gc_while_a_commit_is_under_way(branch or "main", number, slot)
        elif what == "start over":
            self.start_over(number)
        elif what == "gc after a plan":
            self.write_between_a_plan_and_the_lock(data)
        else:
            self.gc_between_a_look_and_the_lock(data, choose("branch", "tag", "undo", "commit"))

    # -- what is compared ---------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Refs, operations and one history, after every step."""
        counts["comparisons"] += 1
        Clock.date(self.store / ".rbl")
        model, repo = self.model, self.repo
        with repo._store.catalog.read() as reader:
            assert reader.refs() == dict(sorted(model.refs.items()))
        tips = {HEADS + one.name: one.commit for one in repo.branches() if one.commit is not None}
        assert tips == model.branches()
        assert repo.branch == model.head_ref.removeprefix(HEADS)
        assert repo.head == model.head
        self.compare_operations()
        for name, tip in list(model.branches().items())[:1]:
            assert [one.commit for one in repo.log(name)] == list(model.history(tip))

    def compare_operations(self) -> None:
        found = self.repo.operations()[::-1]
        assert len(found) == len(self.model.operations)
        undone = self.model.undone()
        number_of = {one.id: one.sequence for one in found}
        for one, done in zip(found, self.model.operations, strict=True):
            assert {change.ref: (change.before, change.after) for change in one.changes} == done.changes
            assert one.description == done.description
            assert one.undone == (one.sequence in undone)
            assert (None if one.undoes is None else number_of[one.undoes]) == done.undoes

    def stored(self) -> set[str]:
        """Commits and tags that the catalog has."""
        with self.repo._store.catalog.read() as reader:
            return {str(one) for one, kind in reader.records() if kind in ("commit", "tag")}

    def check_files(self, commit: str) -> None:
        target = self.folder / "out"
        self.repo.checkout(commit, target)
        assert tiny.checked_out(target) == files_of(self.model.commits[commit].composed)
        shutil.rmtree(target)
        counts["checkouts"] += 1

    def check_said(self, commit: str) -> None:
        composed = self.model.commits[commit].composed
        components = self.repo.audit(commit).components
        for about, component in zip(composed.subjects, components, strict=True):
            assert self.model.said.get(about, set()) <= {claim.key for claim in component.claims}

    def check_storage(self, *, full: bool = False) -> None:
        assert self.repo.fsck(full=full).damages == ()

    def teardown(self) -> None:
        try:
            if hasattr(self, "repo"):
                self.finish()
        finally:
            shutil.rmtree(self.folder)

    def finish(self) -> None:
        if FULL or self.words % 3 == 0:
            self.check_reindexed()
        self.check_storage(full=True)
        kept = self.model.reached(operation_days=WINDOW, young_days=GRACE)
        for commit in sorted(kept & self.model.commits.keys())[:3]:
            self.check_files(commit)
            self.check_said(commit)
        for name, value in self.model.refs.items():
            if name.startswith(TAGS):
                assert self.repo.resolve(name) == self.model.tags[value]
        self.repo.close()

    # -- committing ---------------------------------------------------------------------------------------------

    def word(self) -> str:
        self.words += 1
        return f"word{self.words}"

    def commit(self, branch: str | None, composed: Composed, *, allow_empty: bool = False, **changes: Any) -> None:
        """Commits what makes a composition of the branch's, and takes note of it."""
        ref = self.model.head_ref if branch is None else HEADS + branch
        tip = self.model.refs.get(ref)
        word = self.word()
        imported = {subject(path.name, composed.base) for path in changes.get("behaviors", {}).values()}
        if "identity" in changes:
            imported.add(composed.base)
        if imported:
            changes["meta"] = {word: "said"}

        def make() -> Any:
            return self.repo.commit(word, branch=branch, allow_empty=allow_empty, author="Ada", **changes)

        if tip is not None and self.model.commits[tip].composed == composed and not allow_empty:
            with pytest.raises(NothingChangedError):
                make()
            return
        result = make()
        assert result.parents == (() if tip is None else (tip,))
        assert [(slot.name, slot.weight) for slot in result.slots] == [
            (part.name, part.weight) for part in composed.parts
        ]
        self.model.commit(ref, result.commit, composed, f"commit: {word}")
        for about in imported:
            self.model.said.setdefault(about, set()).add(f"meta.{word}")
        counts["commits"] += 1

    def tip(self, branch: str | None) -> Composed | None:
        commit = self.model.refs.get(self.model.head_ref if branch is None else HEADS + branch)
        return None if commit is None else self.model.commits[commit].composed

    def commit_identity(self, branch: str | None, base: int) -> None:
        before = self.tip(branch)
        remove = [] if before is None else [part.name for part in before.parts]
        self.commit(branch, Composed(f"b{base}"), identity=sources()[f"b{base}"], remove=remove)

    def commit_adapter(self, branch: str | None, slot: str, number: int) -> None:
        before = self.tip(branch)
        if before is None:
            with pytest.raises(UsageError):
                self.repo.commit("no", branch=branch, behaviors={slot: sources()[f"a{number}"]})
        else:
            composed = before.having(slot, f"a{number}")
            self.commit(branch, composed, behaviors={slot: sources()[f"a{number}"]})

    def commit_overlay(self, branch: str | None, number: int) -> None:
        before = self.tip(branch)
        if before is not None:
            source = f"{before.base[:2]}o{number}"
            if source == before.base:
                return  # and beneath another overlay it takes back what that changed
            self.commit(branch, before.having("o", source), behaviors={"o": sources()[source]})

    def commit_weight(self, branch: str | None, slot: str, weight: float, empty: bool) -> None:
        before = self.tip(branch)
        if before is None or before.part(slot) is None:
            with pytest.raises((NotFoundError, UsageError)):
                self.repo.commit("no", branch=branch, weights={slot: weight})
        else:
            self.commit(branch, before.weighing(slot, weight), allow_empty=empty, weights={slot: weight})

    def commit_without(self, branch: str | None, slot: str) -> None:
        before = self.tip(branch)
        if before is not None and before.part(slot) is not None:
            self.commit(branch, before.without(slot), remove=[slot])

    def commit_something(self, data: random.Random, branch: str | None, kind: str) -> None:
        if kind == "identity" or (self.tip(branch) is None and kind != "overlay"):
            self.commit_identity(branch, data.randint(0, BASES - 1))
        elif kind == "adapter":
            self.commit_adapter(branch, data.choice(SLOTS), data.randint(0, ADAPTERS - 1))
        elif kind == "overlay":
            self.commit_overlay(branch, data.randint(0, OVERLAYS - 1))
        elif kind == "weight":
            weight = data.choice((0.5, 1.0, 2.0))
            self.commit_weight(branch, data.choice(SLOTS), weight, data.random() < 0.5)
        else:
            self.commit_without(branch, data.choice((*SLOTS, "o")))
        self.compare()

    def revert(self, slot: str | None) -> None:
        model, head = self.model, self.model.head
        target = None
        if head is not None:
            made = model.commits[head]
            if slot is not None:
                target = made.composed.without(slot) if made.composed.part(slot) else None
            elif made.parent is not None:
                target = model.commits[made.parent].composed
                target = None if target == made.composed else target
        revision = {"behavior": slot} if slot is not None else {"commit": "HEAD"}
        word = self.word()
        if head is None or target is None:
            with pytest.raises((NotFoundError, NothingChangedError, UsageError)):
                self.repo.revert(verify=False, message=word, **revision)
        else:
            result = self.repo.revert(verify=False, message=word, **revision)
            assert result.parents == (head,)
            model.commit(model.head_ref, result.commit, target, f"revert: {word}")
            counts["reverts"] += 1
        self.compare()

    # -- refs ---------------------------------------------------------------------------------------------------

    def create_branch(self, name: str, data: random.Random) -> None:
        start = data.choice(sorted(self.model.commits))
        if HEADS + name in self.model.refs or start not in self.model.present:
            with pytest.raises((NotFoundError, ConflictError)):
                self.repo.create_branch(name, start)
        else:
            self.repo.create_branch(name, start)
            self.model.do(f"branch: {name}", {HEADS + name: (None, start)})

    def delete_branch(self, name: str) -> None:
        value = self.model.refs.get(HEADS + name)
        if value is None or self.model.head_ref == HEADS + name:
            with pytest.raises((NotFoundError, ConflictError)):
                self.repo.delete_branch(name)
        else:
            self.repo.delete_branch(name)
            self.model.do(f"branch: delete {name}", {HEADS + name: (value, None)})

    def switch(self, name: str, how: str) -> None:
        model, ref = self.model, HEADS + name
        exists = ref in model.refs
        if how == "there":
            allowed = exists or model.head_ref == ref
        else:
            allowed = not exists and (how == "orphan" or model.head is not None)
        if not allowed:
            with pytest.raises((NotFoundError, ConflictError)):
                self.repo.switch(name, create=how == "create", orphan=how == "orphan")
        else:
            self.repo.switch(name, create=how == "create", orphan=how == "orphan")
            changes = {"HEAD": (model.refs["HEAD"], SYMBOLIC + ref)}
            if how == "create":
                changes[ref] = (None, model.head)
            model.do(f"switch: {name}", changes)

    def create_tag(self, number: int, data: random.Random) -> None:
        ref, start = f"{TAGS}v{number}", data.choice(sorted(self.model.commits))
        if ref in self.model.refs or start not in self.model.present:
            with pytest.raises((NotFoundError, ConflictError)):
                self.repo.create_tag(f"v{number}", start)
        else:
            made = self.repo.create_tag(f"v{number}", start, message=self.word())
            self.model.tags[made.tag] = start
            self.model.present.add(made.tag)
            self.model.do(f"tag: v{number}", {ref: (None, made.tag)})

    def delete_tag(self, number: int) -> None:
        ref = f"{TAGS}v{number}"
        value = self.model.refs.get(ref)
        if value is None:
            with pytest.raises(NotFoundError):
                self.repo.delete_tag(f"v{number}")
        else:
            self.repo.delete_tag(f"v{number}")
            self.model.do(f"tag: delete v{number}", {ref: (value, None)})

    def move_refs(self, data: random.Random, kind: str) -> None:
        if kind in ("tag", "untag"):
            number = data.randint(0, 2)
            self.delete_tag(number) if kind == "untag" else self.create_tag(number, data)
        else:
            name = data.choice(BRANCHES)
            if kind == "create":
                self.create_branch(name, data)
            elif kind == "delete":
                self.delete_branch(name)
            else:
                self.switch(name, {"switch": "create"}.get(kind, kind))
        self.compare()

    def undo(self, data: random.Random) -> None:
        model = self.model
        number = data.choice((None, data.randint(1, len(model.operations))))
        target = model.latest() if number is None else number
        if target is None or target == 1:
            with pytest.raises(NothingChangedError):
                self.repo.undo(None if number is None else str(number))
        else:
            done = model.operations[target - 1]
            moved = any(model.refs.get(ref) != after for ref, (_, after) in done.changes.items())
            gone = any(
                before is not None and not before.startswith(SYMBOLIC) and before not in model.present
                for before, _ in done.changes.values()
            )
            if moved or gone:
                with pytest.raises(ConflictError):
                    self.repo.undo(None if number is None else str(number))
            else:
                self.repo.undo(None if number is None else str(number))
                back = {ref: (after, before) for ref, (before, after) in done.changes.items()}
                model.do(f"undo: {done.description}", back, target)
                counts["undos"] += 1
        self.compare()

    def abandon(self, number: int, days: float) -> None:
        """A commit that only operations reach, and soon nothing."""
        name = self.word()
        ref = HEADS + name
        if self.model.head is None:
            return
        self.repo.create_branch(name)
        self.model.do(f"branch: {name}", {ref: (None, self.model.head)})
        composed = self.model.commits[self.model.head].composed.having("x", f"a{number}")
        self.commit(name, composed, allow_empty=True, behaviors={"x": sources()[f"a{number}"]})
        self.repo.delete_branch(name)
        self.model.do(f"branch: delete {name}", {ref: (self.model.refs[ref], None)})
        self.compare()
        if days:
            self.time_passes(days)

    def start_over(self, number: int) -> None:
        """A fine-tune is all that is left, and what it is a difference from is reached by nothing else."""
        source, name = f"b0o{number % OVERLAYS}", self.word()
        before = self.model.refs["HEAD"]
        self.repo.switch(name, orphan=True)
        self.model.do(f"switch: {name}", {"HEAD": (before, f"{SYMBOLIC}{HEADS}{name}")})
        self.commit(None, Composed(source), identity=sources()[source])
        for ref, value in sorted(self.model.refs.items()):
            if ref.startswith(HEADS) and ref != HEADS + name:
                self.repo.delete_branch(ref.removeprefix(HEADS))
                self.model.do(f"branch: delete {ref.removeprefix(HEADS)}", {ref: (value, None)})
            elif ref.startswith(TAGS):
                self.repo.delete_tag(ref.removeprefix(TAGS))
                self.model.do(f"tag: delete {ref.removeprefix(TAGS)}", {ref: (value, None)})
        self.collect_something(DAYS[-1], "at once")
        assert self.model.head is not None
        assert self.model.present == {self.model.head}
        self.check_files(self.model.head)

    # -- looking ------------------------------------------------------------------------------------------------

    def checkout(self, data: random.Random, part: str | None) -> None:
        commit = data.choice(sorted(self.model.commits))
        if commit not in self.model.present:
            with pytest.raises(NotFoundError):
                self.repo.checkout(commit, self.folder / "gone")
        elif part is None:
            self.check_files(commit)
        else:
            made = files_of(self.model.commits[commit].composed)
            wanted = {
                path: digest
                for path, digest in made.items()
                if (path.endswith(".json") if part == "*.json" else path.startswith("behaviors/x/"))
            }
            target = self.folder / "part"
            if wanted:
                self.repo.checkout(commit, target, only=part)
                assert tiny.checked_out(target).items() <= made.items()
                assert tiny.checked_out(target)
                shutil.rmtree(target)
            else:
                with pytest.raises(NotFoundError):
                    self.repo.checkout(commit, target, only=part)

    # -- storage ------------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        self.repo.close()
        self.repo = rblstore.open(self.store)

    def repack(self, policy: Any) -> None:
        self.repo.repack(compression=policy)
        self.check_storage()

    def dump(self) -> Any:
        """Graph and refs and operations, and all that is said."""
        log = self.repo.log(all=True) if self.model.head is not None else None
        with self.repo._store.catalog.read() as reader:
            records = dict(reader.records())
            commits = sorted(self.model.present & self.model.commits.keys())
            rows = list(reader.commit_rows(commits))  # type: ignore[arg-type]
            return log, reader.refs(), reader.operations(), records, sorted(rows, key=lambda row: row.id)

    def check_reindexed(self) -> None:
        before = self.dump()
        self.repo.close()
        (self.store / ".rbl" / "catalog.db").unlink()
        assert rblstore.reindex(self.store).skipped == ()
        self.repo = rblstore.open(self.store)
        after = self.dump()
        assert after[:3] == before[:3]
        assert after[3].items() >= before[3].items()  # what lay in packs that nothing listed may be new
        assert after[4] == before[4]
        self.model.present = self.stored() & (self.model.commits.keys() | self.model.tags.keys())
        counts["reindexes"] += 1

    def reindex(self) -> None:
        self.check_reindexed()
        self.check_storage()

    def change_storage(self, kind: str, policy: Any) -> None:
        if kind == "repack":
            self.repack(policy)
        elif kind == "reindex":
            self.reindex()
        else:
            self.reopen()
        self.compare()

    # -- time, and what it takes --------------------------------------------------------------------------------

    def time_passes(self, days: float) -> None:
        Clock.date(self.store / ".rbl")
        Clock.days += days
        self.model.day += days

    def collect_something(self, days: float, kind: str) -> None:
        self.time_passes(days)
        if kind == "look":
            self.look_what_would_go()
        elif kind == "grace":
            self.gc()
        elif kind == "at once":
            self.gc_at_once()
        else:
            self.gc_and_restore()
        self.compare()
        self.check_storage()

    def collect(self, **options: Any) -> Any:
        Clock.date(self.store / ".rbl")
        result = self.repo.gc(apply=True, **options)
        Clock.date(self.store / ".rbl")
        return result

    def look_what_would_go(self) -> None:
        there = self.stored()
        self.repo.gc()
        assert self.stored() == there

    def gc(self) -> None:
        must = self.model.reached(operation_days=WINDOW, young_days=GRACE)
        before = self.stored()
        self.collect()
        after = self.stored()
        assert must <= after <= before
        self.model.collected(after)
        counts["commits collected"] += len(before - after)

    def gc_at_once(self) -> None:
        """All that nothing reaches goes: to the trash with the first, from there with the second."""
        must = self.model.reached(operation_days=WINDOW)
        before = self.stored()
        self.collect(grace_days=0)
        assert self.stored() == must & before
        assert must <= before
        again = self.collect(grace_days=0)
        assert again.trash_packs == 0
        assert not list((self.store / ".rbl" / "trash").rglob("*.pack"))
        assert not self.collect(grace_days=0).changed
        self.model.collected(must)
        counts["commits collected"] += len(before - must)
        self.check_nothing_else()

    def check_nothing_else(self) -> None:
        """No pack holds nothing but what no commit needs, and no record of any commit that is not the model's."""
        needed = set()
        for commit in self.model.present & self.model.commits.keys():
            needed |= set(files_of(self.model.commits[commit].composed).values())
        store = self.repo._store
        listed = {row.pack for row in store._catalog_packs()}
        assert set(store.packs()) == listed
        with store.catalog.read() as reader:
            records = {str(one) for one, _ in reader.records()}
        for pack in store.packs():
            summary = store.pack(pack).summary()
            if summary.kind == "R":
                assert {str(at.content) for at in summary.locations} <= records

    def gc_and_restore(self) -> None:
        """What went to the trash comes back, all of it."""
        before = self.stored()
        self.collect(grace_days=0)
        counts["commits restored"] += len(before - self.stored())
        said = dict(self.model.said)
        self.repo.restore_trash()
        after = self.stored()
        assert before <= after
        assert after <= self.model.commits.keys() | self.model.tags.keys()
        self.model.collected(after)
        self.model.said = said
        for commit in sorted(after & self.model.commits.keys())[:3]:
            self.check_files(commit)

    def gc_while_a_commit_is_under_way(self, branch: str, number: int, slot: str) -> None:
        """What a transaction found stored already stays, since nobody collects before it ends."""
        before = self.tip(branch)
        if before is None:
            return
        tried = []

        def collect(_: Any) -> None:
            if not tried:
                with rblstore.open(self.store) as other, pytest.raises(LockedError):
                    other.gc(apply=True, grace_days=0)
                tried.append(True)

        composed = before.having(slot, f"a{number}")
        self.commit(
            branch, composed, behaviors={slot: sources()[f"a{number}"]}, allow_empty=True, progress=collect, rehash=True
        )
        assert tried
        counts["gc beside a commit"] += 1
        self.compare()

    def write_between_a_plan_and_the_lock(self, data: random.Random) -> None:
        """What was found to be reached by nothing, and is reached again before it goes, stays."""
        model, store = self.model, self.repo._store
        start, word = data.choice(sorted(model.present & model.commits.keys())), self.word()
        begin = store.maintenance

        def write_first() -> Any:
            with rblstore.open(self.store) as other:
                other.create_branch(word, start)
            return begin()

        store.maintenance = write_first  # type: ignore[method-assign]
        try:
            self.collect(grace_days=0)
        finally:
            del store.maintenance
        model.do(f"branch: {word}", {HEADS + word: (None, start)})
        after = self.stored()
        assert model.reached(operation_days=WINDOW) <= after
        model.collected(after)
        self.compare()
        self.check_storage()
        self.check_files(start)

    def gc_between_a_look_and_the_lock(self, data: random.Random, kind: str) -> None:
        """What somebody looked up and gc took before they wrote is refused, and never published."""
        model, store = self.model, self.repo._store
        start = data.choice(sorted(model.commits))
        must = model.reached(operation_days=WINDOW)
        begin = store.transaction

        def collect_first(*arguments: Any) -> Any:
            del store.transaction
            self.collect(grace_days=0)
            return begin(*arguments)

        store.transaction = collect_first  # type: ignore[method-assign]
        free = next((name for name in BRANCHES if HEADS + name not in model.refs), None)
        tip, word = self.tip(None), self.word()
        undone = model.latest()
        try:
            with quietly(ConflictError, NotFoundError, NothingChangedError):
                if kind == "branch" and free is not None:
                    self.repo.create_branch(free, start)
                    model.do(f"branch: {free}", {HEADS + free: (None, start)})
                elif kind == "tag":
                    made = self.repo.create_tag(word, start)
                    model.tags[made.tag] = start
                    model.do(f"tag: {word}", {TAGS + word: (None, made.tag)})
                    must |= {made.tag}
                elif kind == "undo" and undone is not None:
                    self.repo.undo()
                    done = model.operations[undone - 1]
                    back = {ref: (after, before) for ref, (before, after) in done.changes.items()}
                    model.do(f"undo: {done.description}", back, undone)
                elif kind == "commit" and tip is not None:
                    result = self.repo.commit(word, weights={}, allow_empty=True)
                    model.commit(model.head_ref, result.commit, tip, f"commit: {word}")
                    must |= {str(result.commit)}
        finally:
            vars(store).pop("transaction", None)
        after = self.stored()
        assert must & (model.present | after) <= after
        model.collected(after & (model.commits.keys() | model.tags.keys()))
        assert {value for value in model.refs.values() if not value.startswith(SYMBOLIC)} <= model.present
        self.compare()
        self.check_storage()


@pytest.mark.slow
def test_repositories_against_a_model(own_time: None) -> None:
    steps = 20 if FULL else 8
    with (
        Trials("R10", "catalogs deleted and made anew", quick=200, full=1000) as reindexed,
        Trials("R7", "repositories against a model", quick=200, full=20_000) as run,
    ):
        counts.clear()
        for _ in run:
            number = min(CHUNK, run.wanted - run.done)
            machine = seed(run.moment.getrandbits(32))(Repositories)
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=number,
                    stateful_step_count=steps,
                    deadline=None,
                    database=None,
                    derandomize=False,
                    suppress_health_check=list(HealthCheck),
                    # Taking a failure apart takes minutes; eight steps are few enough to read.
                    phases=list(Phase) if FULL else [Phase.generate],
                    print_blob=True,
                ),
            )
            run.done += number - 1
        run.counts.update(counts)
        reindexed.done = counts["reindexes"]
