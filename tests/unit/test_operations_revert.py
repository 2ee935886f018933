"""What a revert takes out and puts back, and what it refuses; the proofs on live models are under integration/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import WIDTH, values, write_adapter, write_base

import rblstore
from rblstore.objects.history_records import Commit
from rblstore.objects.ids import CommitId


@pytest.fixture
def sources(tmp_path: Path) -> Callable[[str], Path]:
    """Adapters by name, each with values of its own."""

    def make(name: str) -> Path:
        folder = tmp_path / "sources" / name
        return folder if folder.exists() else write_adapter(folder, seed=sum(name.encode()))

    write_base(tmp_path / "sources" / "base")
    return make


@pytest.fixture
def repo(tmp_path: Path, sources: Callable[[str], Path]) -> Any:
    """base <- a <- b <- c (HEAD -> main), each adding the behavior of its name."""
    with rblstore.init(tmp_path / "store") as opened:
        opened.commit("base", identity=tmp_path / "sources" / "base")
        for name in "abc":
            opened.commit(name, behaviors={name: sources(name)})
        yield opened


def slots(repo: Any, revision: str = "HEAD") -> list[tuple[str, float]]:
    return [(slot.name, slot.weight) for slot in repo.log(revision, limit=1)[0].slots]


def refused(repo: Any, family: type[rblstore.RblError], code: str, /, *arguments: Any, **options: Any) -> Any:
    head, operations = repo.head, repo.operations()
    with pytest.raises(family) as caught:
        repo.revert(*arguments, **options)
    assert caught.value.code == code, caught.value
    assert (repo.head, repo.operations()) == (head, operations)
    return caught.value


class TestByBehavior:
    def test_it_goes_and_the_others_stay(self, repo: Any) -> None:
        head = repo.head
        result = repo.revert(behavior="b")
        assert slots(repo) == [("a", 1.0), ("c", 1.0)]
        assert (result.removed, result.restored, result.reverted) == (("b",), (), None)
        assert (result.verdict, result.verification, result.verification_id) == ("unverified", None, None)
        assert (result.parents, repo.head, result.branch) == ((head,), result.commit, "main")
        assert result.message == "Revert behavior 'b'"
        assert result.same_composition_as is None
        assert repo.operations()[0].description == "revert: Revert behavior 'b'"

    def test_which_earlier_commit_it_equals(self, repo: Any) -> None:
        result = repo.revert(behavior="c")
        assert result.same_composition_as == repo.resolve("HEAD~2")
        again = repo.commit("c again", behaviors={"c": repo.path.parent / "sources" / "c"})
        assert repo.revert(behavior="c").same_composition_as == result.commit
        assert again.composition == repo.log("HEAD~3")[0].composition

    def test_undo_brings_it_back(self, repo: Any) -> None:
        head = repo.head
        repo.revert(behavior="b")
        repo.undo()
        assert repo.head == head

    def test_one_that_is_not_there(self, repo: Any) -> None:
        error = refused(repo, rblstore.NotFoundError, "no_such_behavior", behavior="z")
        assert "a, b, c" in error.hint


class TestByCommit:
    def test_added(self, repo: Any) -> None:
        reverted = repo.resolve("HEAD~1")
        result = repo.revert("HEAD~1", message=None)
        assert slots(repo) == [("a", 1.0), ("c", 1.0)]
        assert result.reverted == reverted
        assert result.message == f'Revert "b"\n\nThis reverts commit {reverted}.'

    def test_removed_comes_back_where_it_stood(self, repo: Any) -> None:
        repo.commit("without b", remove=["b"])
        result = repo.revert("HEAD")
        assert slots(repo) == [("a", 1.0), ("b", 1.0), ("c", 1.0)]
        assert (result.removed, result.restored) == ((), ("b",))
        assert result.same_composition_as == repo.resolve("HEAD~2")

    def test_the_first_removed_comes_back_first(self, repo: Any) -> None:
        repo.commit("without a and b", remove=["a", "b"])
        repo.revert("HEAD")
        assert [name for name, _ in slots(repo)] == ["a", "b", "c"]

    def test_one_in_the_middle_comes_back_behind_the_nearest_that_is_there(self, repo: Any) -> None:
        repo.commit("without c", remove=["c"])
        repo.commit("d", behaviors={"d": write_adapter(repo.path.parent / "sources" / "d", seed=4)})
        repo.revert("HEAD~1")
        assert [name for name, _ in slots(repo)] == ["a", "b", "c", "d"]

    def test_replaced(self, repo: Any, sources: Callable[[str], Path]) -> None:
        before = repo.log()[0].slots
        repo.commit("another a", behaviors={"a": sources("x")}, weights={"a": 0.5})
        result = repo.revert("HEAD")
        assert repo.log()[0].slots == before
        assert (result.removed, result.restored) == ((), ("a",))

    def test_reweighted(self, repo: Any) -> None:
        repo.commit("half", weights={"b": 0.5})
        repo.commit("unrelated", weights={"c": 0.25})
        repo.revert("HEAD~1")
        assert slots(repo) == [("a", 1.0), ("b", 1.0), ("c", 0.25)]

    def test_the_identity(self, repo: Any, tmp_path: Path) -> None:
        old = repo.log()[0].identity
        tuned = write_base(tmp_path / "tuned", model__norm__weight=values(WIDTH, seed=9))
        repo.commit("tuned", identity=tuned)
        repo.commit("half", weights={"c": 0.5})
        result = repo.revert("HEAD~1")
        assert repo.log()[0].identity == old
        assert slots(repo) == [("a", 1.0), ("b", 1.0), ("c", 0.5)]
        assert result.composition == repo.log()[0].composition

    def test_a_revert(self, repo: Any) -> None:
        before = repo.log()[0].composition
        repo.revert(behavior="b")
        assert repo.revert("HEAD").composition == before

    def test_an_own_message_and_author(self, repo: Any) -> None:
        result = repo.revert("HEAD", message="because", author="Ada")
        entry = repo.log(limit=1)[0]
        assert (entry.message, entry.author, result.message) == ("because", "Ada", "because")


class TestConflicts:
    def test_a_slot_that_a_later_commit_changed(self, repo: Any, sources: Callable[[str], Path]) -> None:
        later = repo.commit("another b", behaviors={"b": sources("x")}).commit
        repo.commit("unrelated", weights={"c": 0.5})
        error = refused(repo, rblstore.ConflictError, "revert_conflict", "HEAD~3")
        assert error.object == "b"
        assert later[:12] in error.message
        assert error.exit_code == 4

    def test_a_slot_that_a_later_commit_removed(self, repo: Any) -> None:
        later = repo.commit("without b", remove=["b"]).commit
        error = refused(repo, rblstore.ConflictError, "revert_conflict", "HEAD~2")
        assert later[:12] in error.message

    def test_a_weight_that_a_later_commit_changed(self, repo: Any) -> None:
        later = repo.commit("half", weights={"b": 0.5}).commit
        error = refused(repo, rblstore.ConflictError, "revert_conflict", "HEAD~2")
        assert later[:12] in error.message

    def test_an_identity_that_a_later_commit_changed(self, repo: Any, tmp_path: Path) -> None:
        for seed in (8, 9):
            tuned = write_base(tmp_path / f"tuned{seed}", model__norm__weight=values(WIDTH, seed=seed))
            later = repo.commit("tuned", identity=tuned).commit
        error = refused(repo, rblstore.ConflictError, "revert_conflict", "HEAD~1")
        assert "the identity" in error.message
        assert later[:12] in error.message

    def test_taken_out_and_put_back_is_no_conflict(self, repo: Any, sources: Callable[[str], Path]) -> None:
        repo.commit("without c", remove=["c"])
        repo.commit("c again", behaviors={"c": sources("c")})
        repo.revert("HEAD~2")
        assert [name for name, _ in slots(repo)] == ["a", "b"]

    def test_what_another_behavior_stands_on(self, tmp_path: Path) -> None:
        edited = {"base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight": values(WIDTH, WIDTH, seed=7)}
        with rblstore.init(tmp_path / "stacked") as repo:
            repo.commit("base", identity=write_base(tmp_path / "base"))
            repo.commit("lower", behaviors={"lower": write_adapter(tmp_path / "lower", extra=edited)})
            repo.commit("upper", behaviors={"upper": write_adapter(tmp_path / "upper", seed=2)})
            for arguments, options in (((), {"behavior": "lower"}), (("HEAD~1",), {})):
                error = refused(repo, rblstore.ConflictError, "stands_on", *arguments, **options)
                assert "'lower'" in error.message
                assert "'upper'" in error.message
            repo.revert(behavior="upper")
            repo.revert(behavior="lower")
            assert slots(repo) == []

    def test_nothing_to_revert(self, repo: Any) -> None:
        repo.commit("empty", allow_empty=True)
        error = refused(repo, rblstore.NothingChangedError, "nothing_changed", "HEAD")
        assert error.object == repo.head

    def test_another_history(self, repo: Any, sources: Callable[[str], Path]) -> None:
        repo.create_branch("side", "HEAD~1")
        repo.commit("d", behaviors={"d": sources("d")}, branch="side")
        refused(repo, rblstore.ConflictError, "conflict", "side")


class TestRequests:
    def test_both_or_neither(self, repo: Any) -> None:
        refused(repo, rblstore.UsageError, "usage")
        refused(repo, rblstore.UsageError, "usage", "HEAD", behavior="a")

    def test_a_root(self, repo: Any) -> None:
        error = refused(repo, rblstore.UsageError, "usage", "HEAD~3")
        assert "root" in error.message
        assert "--orphan" in error.hint

    def test_what_is_not_there(self, repo: Any) -> None:
        refused(repo, rblstore.NotFoundError, "unknown_revision", "nobody")

    def test_an_empty_branch(self, tmp_path: Path) -> None:
        with rblstore.init(tmp_path / "empty") as repo, pytest.raises(rblstore.NotFoundError):
            repo.revert(behavior="a")

    @pytest.mark.parametrize("message", ["", "  ", "a\0b"])
    def test_a_message_that_no_commit_may_have(self, repo: Any, message: str) -> None:
        head = repo.head
        with pytest.raises(rblstore.RblError):
            repo.revert("HEAD", message=message)
        assert repo.head == head

    @pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
    def test_a_tolerance_that_is_none(self, repo: Any, tolerance: float) -> None:
        refused(repo, rblstore.UsageError, "bad_tolerance", "HEAD", tolerance=tolerance)

    def test_require_verified_without_a_probe(self, repo: Any) -> None:
        error = refused(repo, rblstore.RblError, "unverified", behavior="a", require_verified=True)
        assert "rbl probe add" in error.hint
        refused(repo, rblstore.RblError, "unverified", behavior="a", require_verified=True, verify=False)

    def test_a_probe_that_is_not_there(self, repo: Any) -> None:
        refused(repo, rblstore.NotFoundError, "no_such_probe", behavior="a", probe="ten")

    def test_no_verify_measures_nothing(self, repo: Any) -> None:
        repo.add_probe("ids", [{"id": "p", "tokens": [1, 2]}])
        assert repo.revert(behavior="a", verify=False).verdict == "unverified"
        assert repo.baselines() == []

    def test_mainline(self, repo: Any, sources: Callable[[str], Path]) -> None:
        """A merge of main (a, b, c) and side (a, b, d) into (a, b, c, d)."""
        repo.create_branch("side", "HEAD~1")
        repo.commit("d", behaviors={"d": sources("d")}, branch="side")
        repo.create_branch("like")
        repo.commit("all", behaviors={"d": sources("d")}, branch="like")
        store = repo._store
        like = store.record(repo.resolve("like"), Commit)
        record = Commit(like.composition, (repo.head, repo.resolve("side")), "Ada", "2026-03-01T12:00:00Z", "merge")
        with store.transaction("Ada") as transaction:
            merge = CommitId(transaction.add_record(record))
            transaction.set_ref("refs/heads/main", repo.head, merge)
            transaction.describe("merge")
        error = refused(repo, rblstore.UsageError, "usage", "HEAD")
        assert "merge" in error.message
        assert "--mainline" in error.hint
        for number in (0, 3, -1):
            refused(repo, rblstore.UsageError, "usage", "HEAD", mainline=number)
        repo.revert("HEAD", mainline=2)
        assert [name for name, _ in slots(repo)] == ["a", "b", "d"]
        repo.undo()
        repo.revert("HEAD", mainline=1)
        assert [name for name, _ in slots(repo)] == ["a", "b", "c"]
        assert repo.log(limit=1)[0].parents == (merge,)

    def test_mainline_of_a_commit_with_one_parent(self, repo: Any) -> None:
        refused(repo, rblstore.UsageError, "usage", "HEAD", mainline=2)
        repo.revert("HEAD", mainline=1)
        assert [name for name, _ in slots(repo)] == ["a", "b"]

    def test_on_the_branch_that_moved_meanwhile(self, repo: Any, sources: Callable[[str], Path]) -> None:
        with rblstore.open(repo.path) as theirs:
            won: list[Any] = []

            def meanwhile(_: Any) -> None:
                if not won:
                    won.append(theirs.commit("d", behaviors={"d": sources("d")}))

            with pytest.raises(rblstore.ConflictError) as caught:
                repo.revert(behavior="a", progress=meanwhile)
        assert caught.value.code == "ref_moved"
        assert repo.head == won[0].commit
