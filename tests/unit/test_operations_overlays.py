"""Overlays through the library, without torch: a few tensors each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import WIDTH, base_tensors, checked_out, digests, values, write_base, write_safetensors

import rblstore
from rblstore.objects.content_records import Behavior
from rblstore.objects.history_records import Commit, Composition, Slot
from rblstore.objects.ids import BehaviorId, CompositionId

NORM = "model.norm.weight"


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Any]:
    with rblstore.init(tmp_path / "store") as made:
        made.commit("base", identity=write_base(tmp_path / "base"))
        yield made


@pytest.fixture
def fine(tmp_path: Path) -> Path:
    return write_base(tmp_path / "ft", model__norm__weight=values(WIDTH, seed=9))


class TestCommands:
    def test_it_comes_back_and_goes(self, repo: Any, fine: Path, tmp_path: Path) -> None:
        result = repo.commit("ft", behaviors={"ft": fine})
        assert result.added_contents == 1
        for form in ("adapters", "merged"):
            out = tmp_path / form
            repo.checkout("HEAD", out, form=form)
            assert checked_out(out) == digests(fine)
            assert repo.status(out).clean
        reverted = repo.revert(behavior="ft")
        assert (reverted.verdict, reverted.removed) == ("unverified", ("ft",))
        assert reverted.same_composition_as == repo.resolve("HEAD~2")
        assert repo.fsck(full=True).damages == ()

    def test_the_same_again_changes_nothing(self, repo: Any, fine: Path) -> None:
        repo.commit("ft", behaviors={"ft": fine})
        with pytest.raises(rblstore.NothingChangedError, match="already committed"):
            repo.commit("ft", behaviors={"ft": fine})

    def test_a_checkout_that_was_trained_on_takes_its_place(self, repo: Any, fine: Path, tmp_path: Path) -> None:
        repo.commit("ft", behaviors={"ft": fine})
        repo.checkout("HEAD", tmp_path / "out")
        weights = {**base_tensors(), NORM: values(WIDTH, seed=10)}
        write_safetensors(tmp_path / "out" / "model.safetensors", weights, metadata={"format": "pt"})
        repo.commit("more", behaviors={"ft": tmp_path / "out"})
        (change,) = repo.diff().tensors
        assert (change.target, change.change, change.behaviors) == (NORM, "replaced", ("ft",))
        assert None not in (change.before, change.after)
        assert [slot.name for slot in repo.log()[0].slots] == ["ft"]

    def test_undo(self, repo: Any, fine: Path) -> None:
        repo.commit("ft", behaviors={"ft": fine})
        repo.undo()
        assert repo.log()[0].slots == ()


class TestPlaces:
    def test_the_checkout_s_own_are_refused(self, repo: Any, fine: Path) -> None:
        (fine / "behaviors").mkdir()
        (fine / "behaviors" / "x.txt").write_text("x")
        with pytest.raises(rblstore.ConflictError) as caught:
            repo.commit("ft", behaviors={"ft": fine})
        assert caught.value.code == "layout_collision"

    def test_a_mixture_with_two_spellings_of_one_name_is_refused(self, repo: Any, fine: Path, tmp_path: Path) -> None:
        (fine / "Notes.txt").write_text("x")
        repo.commit("ft", behaviors={"ft": fine})
        other = write_base(tmp_path / "other", lm_head__weight=values(8, WIDTH, seed=9))
        (other / "NOTES.TXT").write_text("y")
        head = repo.head
        with pytest.raises(rblstore.InputError):
            repo.commit("other", identity=other)
        assert repo.head == head


class TestFsck:
    def test_effects_that_the_files_do_not_bear_out(self, repo: Any, fine: Path) -> None:
        repo.commit("ft", behaviors={"ft": fine})
        store = repo._store
        slot = repo.log()[0].slots[0]
        behavior = store.record(slot.behavior, Behavior)
        (effect,) = behavior.effects
        lie = replace(behavior, effects=(replace(effect, value=effect.beneath),))
        before = store.record(store.record(repo.head, Commit).composition, Composition)
        ref = store.head_branch()
        with store.transaction("a") as transaction:
            lying = Slot("ft", BehaviorId(transaction.add_record(lie)), 1.0)
            composition = CompositionId(transaction.add_record(replace(before, slots=(lying,))))
            commit = Commit(composition, (repo.head,), "a", "2026-03-01T12:00:00Z", "lie")
            transaction.set_ref(ref, repo.head, transaction.add_record(commit))
            transaction.describe("lie")
        assert repo.fsck().damages == ()
        (damage,) = repo.fsck(full=True).damages
        assert (damage.kind, damage.object) == ("record", lying.behavior)
        assert NORM in damage.problem
