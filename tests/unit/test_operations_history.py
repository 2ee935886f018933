"""Looking at history and moving about in it: log, show, diff, status, revisions, branches, tags, undo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import WIDTH, values, write_adapter, write_base

import rblstore
from rblstore.objects.history_records import Commit, Composition
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
    """base <- a <- b (HEAD -> main)."""
    with rblstore.init(tmp_path / "store") as opened:
        opened.commit("base", identity=tmp_path / "sources" / "base", author="Ada")
        opened.commit("a", behaviors={"a": sources("a")}, author="Ada")
        opened.commit("b\n\nmore", behaviors={"b": sources("b")}, author="Bob")
        yield opened


def merged(repo: Any, *parents: str, like: str = "HEAD") -> CommitId:
    """A commit with several parents on the current branch, made through the kernel: there is no merge yet."""
    store = repo._store
    commits = tuple(repo.resolve(parent) for parent in parents)
    composition = store.record(repo.resolve(like), Commit).composition
    record = Commit(composition, commits, "Ada", "2026-03-01T12:00:00Z", "merge")
    with store.transaction("Ada") as transaction:
        commit = CommitId(transaction.add_record(record))
        transaction.set_ref(store.head_branch(), store.ref(store.head_branch()), commit)
        transaction.describe("merge")
    return commit


class TestLog:
    def test_newest_first_with_names_and_slots(self, repo: Any) -> None:
        entries = repo.log()
        assert [entry.message for entry in entries] == ["b\n\nmore", "a", "base"]
        assert [[slot.name for slot in entry.slots] for entry in entries] == [["a", "b"], ["a"], []]
        assert [entry.author for entry in entries] == ["Bob", "Ada", "Ada"]
        assert entries[0].refs == ("HEAD -> main",)
        assert entries[0].parents == (entries[1].commit,)
        assert len({entry.identity for entry in entries}) == 1

    def test_limit_and_start(self, repo: Any) -> None:
        assert [entry.message for entry in repo.log(limit=1)] == ["b\n\nmore"]
        assert [entry.message for entry in repo.log("HEAD~1")] == ["a", "base"]
        assert repo.log(limit=0) == []

    def test_all_branches_and_tags(self, repo: Any, sources: Callable[[str], Path]) -> None:
        repo.create_branch("side", "HEAD~2")
        repo.commit("c", behaviors={"c": sources("c")}, branch="side")
        repo.create_tag("v1", "side")
        repo.delete_branch("side")
        names = {entry.message: entry.refs for entry in repo.log(all=True)}
        assert names["c"] == ("tag: v1",)
        assert "c" not in [entry.message for entry in repo.log()]

    def test_children_come_before_their_parents_whatever_the_clock_says(
        self, repo: Any, sources: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rblstore.operations.commit.utc_now", lambda: "1999-01-01T00:00:00Z")
        repo.commit("c", behaviors={"c": sources("c")})
        assert repo.log()[0].message == "c"

    def test_an_empty_repository(self, tmp_path: Path) -> None:
        with rblstore.init(tmp_path / "empty", branch="trunk") as empty:
            with pytest.raises(rblstore.NotFoundError) as caught:
                empty.log()
            assert caught.value.code == "no_commits"
            assert "'trunk'" in caught.value.message
            assert empty.log(all=True) == []
            assert (empty.head, empty.branch) == (None, "trunk")
            assert (empty.status().branch, empty.status().commit) == ("trunk", None)


class TestRevisions:
    def test_what_people_type(self, repo: Any) -> None:
        b, a, base = (entry.commit for entry in repo.log())
        repo.create_tag("v1", "HEAD~1")
        named = {
            "HEAD": b, "@": b, "main": b, "refs/heads/main": b, b: b, b[:6]: b, b[:6].upper(): b,
            "HEAD~0": b, "HEAD^0": b,
            "HEAD~": a, "HEAD~1": a, "main^": a, "main^1": a, "@^": a, "v1": a, "refs/tags/v1": a, a[:9]: a,
            "HEAD~2": base, "main^^": base, "main~1^": base, "v1~": base, f"{b[:8]}~2": base,
        }  # fmt: skip
        for text, commit in named.items():
            assert repo.resolve(text) == commit, text

    @pytest.mark.parametrize("text", ["", "HEAD~x", "HEAD^~y", "~1", "^", "HEAD~1a", "HEAD~99999999999", "main^{}"])
    def test_malformed(self, repo: Any, text: str) -> None:
        with pytest.raises(rblstore.UsageError) as caught:
            repo.resolve(text)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        "text", ["nobody", "HEAD~3", "main^2", "abcdef", "0" * 64, "HEAD@{99}", "HEAD@{zz}", "refs/heads/x", "a b", "é"]
    )
    def test_unknown(self, repo: Any, text: str) -> None:
        with pytest.raises(rblstore.NotFoundError) as caught:
            repo.resolve(text)
        assert caught.value.exit_code == 1
        assert caught.value.hint

    def test_something_else_than_a_commit(self, repo: Any) -> None:
        with pytest.raises(rblstore.NotFoundError):
            repo.resolve(repo.log()[0].identity)

    def test_an_ambiguous_prefix(self, repo: Any) -> None:
        first = repo.log()[0]
        store = repo._store
        twins: dict[str, CommitId] = {}
        # Two commits whose ids begin with six equal digits are found by trying times.
        for at in range(100_000):
            record = Commit(first.composition, (), "Ada", "2026-03-01T12:00:00Z", f"m{at}")
            commit = CommitId(Commit.id_of(record.encode()))
            if commit[:6] in twins:
                other = twins[commit[:6]]
                break
            twins[commit[:6]] = commit
            twins[f"m{commit}"] = commit
        with store.transaction("Ada") as transaction:
            for message in (record, _with_id(first.composition, other)):
                transaction.add_record(message)
        with pytest.raises(rblstore.UsageError) as caught:
            repo.resolve(commit[:6])
        assert caught.value.code == "ambiguous_revision"
        assert commit[:12] in caught.value.message
        assert other[:12] in caught.value.message
        assert repo.resolve(commit) == commit

    def test_refs_as_they_were_after_an_operation(self, repo: Any, sources: Callable[[str], Path]) -> None:
        b, a, base = (entry.commit for entry in repo.log())
        made = {one.description: one for one in reversed(repo.operations())}
        repo.create_branch("side", "HEAD~1")
        repo.switch("side")
        repo.commit("c", behaviors={"c": sources("c")})
        for text, commit in {
            f"HEAD@{{{made['commit: a'].id[:8]}}}": a,
            f"main@{{{made['commit: base'].id}}}": base,
            f"@{{{made['commit: b'].sequence}}}": b,
            f"main@{{{made['commit: b'].id[:6]}}}~1": a,
            "side@{5}": a,
        }.items():
            assert repo.resolve(text) == commit, text
        with pytest.raises(rblstore.NotFoundError, match="had no value"):
            repo.resolve("side@{4}")

    def test_a_branch_wins_over_a_tag_and_a_prefix(self, repo: Any) -> None:
        base = repo.resolve("HEAD~2")
        digits = repo.head[:6]
        repo.create_branch(digits, "HEAD~2")
        repo.create_tag(digits, "HEAD~1")
        assert repo.resolve(digits) == base

    def test_parents_of_a_merge(self, repo: Any) -> None:
        repo.create_branch("side", "HEAD~1")
        main, side = repo.head, repo.resolve("side")
        merge = merged(repo, "HEAD", "side")
        assert repo.head == merge
        assert repo.resolve("HEAD^2") == side
        assert repo.resolve("HEAD^1") == main
        assert [entry.parents for entry in repo.log(limit=1)] == [(main, side)]


def _with_id(composition: Any, wanted: CommitId) -> Commit:
    for at in range(100_000):
        record = Commit(composition, (), "Ada", "2026-03-01T12:00:00Z", f"m{at}")
        if Commit.id_of(record.encode()) == wanted:
            return record
    raise AssertionError(wanted)


class TestShow:
    def test_a_commit(self, repo: Any) -> None:
        shown = repo.show("HEAD")
        assert (shown.kind, shown.id, shown.refs) == ("commit", repo.head, ("HEAD -> main",))
        assert shown.record["message"] == "b\n\nmore"
        assert (shown.identity.files, shown.identity.tensors, shown.identity.dtypes) == (2, 7, {"F32": 7})
        assert shown.identity.elements == 5 * WIDTH * WIDTH + WIDTH + 8 * WIDTH
        assert [(one.name, one.type, one.effects) for one in shown.behaviors] == [
            ("a", "LORA", {"modifies": 2}),
            ("b", "LORA", {"modifies": 2}),
        ]

    def test_anything_by_id(self, repo: Any) -> None:
        entry = repo.log()[0]
        repo.create_tag("v1", message="one")
        kinds = {
            entry.identity: "identity",
            entry.slots[0].behavior[:10]: "behavior",
            entry.composition: "composition",
            repo.tags()[0].tag: "tag",
            "v1": "tag",
            "main": "commit",
            "HEAD~1": "commit",
        }
        for text, kind in kinds.items():
            assert repo.show(text).kind == kind, text
        assert repo.show(entry.slots[0].behavior).behaviors[0].name is None
        json.dumps(repo.show().as_json())

    def test_nothing(self, repo: Any) -> None:
        for text in ("nobody", "abcdef", "f" * 64):
            with pytest.raises(rblstore.NotFoundError):
                repo.show(text)


class TestDiff:
    def test_slots_and_tensors(self, repo: Any, sources: Callable[[str], Path]) -> None:
        repo.commit("many", behaviors={"a": sources("x"), "c": sources("c")}, weights={"b": 0.5})
        result = repo.diff("HEAD^", "HEAD")
        assert [(one.name, one.change) for one in result.slots] == [
            ("a", "replaced"),
            ("b", "reweighted"),
            ("c", "added"),
        ]
        (back,) = [one for one in repo.diff("HEAD", "HEAD^").slots if one.name == "c"]
        assert (back.change, back.after) == ("removed", None)
        assert [(one.target, one.change, one.behaviors) for one in result.tensors] == [
            (f"model.layers.{layer}.self_attn.q_proj.weight", "modified", ("a", "b", "c")) for layer in (0, 1)
        ]
        assert result.files == ()
        assert repo.diff("HEAD", "HEAD").slots == ()

    def test_identities(self, repo: Any, tmp_path: Path) -> None:
        tuned = write_base(tmp_path / "tuned", model__norm__weight=values(WIDTH, seed=9))
        (tuned / "extra.txt").write_text("x")
        repo.commit("tuned", identity=tuned)
        result = repo.diff()
        assert result.identity_before != result.identity_after
        assert [(one.target, one.change) for one in result.tensors] == [("model.norm.weight", "replaced")]
        assert [(one.path, one.change) for one in result.files] == [
            ("extra.txt", "added"),
            ("model.safetensors", "replaced"),
        ]
        assert result.slots == ()

    def test_what_replaces(self, repo: Any, tmp_path: Path) -> None:
        edited = {"base_model.model.model.layers.0.self_attn.v_proj.base_layer.weight": values(WIDTH, WIDTH, seed=7)}
        repo.commit("e", behaviors={"e": write_adapter(tmp_path / "e", parts=("v",), extra=edited)})
        changes = {one.target: one for one in repo.diff().tensors}
        assert changes["model.layers.0.self_attn.v_proj.weight"].change == "replaced"
        assert changes["model.layers.0.self_attn.v_proj.weight"].after is not None
        assert changes["model.layers.1.self_attn.v_proj.weight"].change == "modified"

    def test_one_side_that_is_not_there(self, repo: Any) -> None:
        with pytest.raises(rblstore.NotFoundError):
            repo.diff("HEAD~3")


class TestStatus:
    def test_of_the_repository(self, repo: Any) -> None:
        status = repo.status()
        assert (status.branch, status.commit) == ("main", repo.head)
        assert [slot.name for slot in status.slots] == ["a", "b"]

    def test_of_a_checkout(self, repo: Any, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = repo.checkout("HEAD~1", out)
        status = repo.status(out)
        assert status.clean
        assert status.known
        assert (status.commit, status.form) == (result.commit, "adapters")
        (out / "config.json").write_text("{}")
        (out / "new.txt").write_text("mine")
        (out / "behaviors" / "a" / "adapter_config.json").unlink()
        status = repo.status(out)
        assert not status.clean
        assert {(one.path, one.kind) for one in status.differences} == {
            ("config.json", "changed"),
            ("new.txt", "added"),
            ("behaviors/a/adapter_config.json", "missing"),
        }

    def test_of_a_checkout_of_another_repository(self, repo: Any, tmp_path: Path) -> None:
        repo.checkout("HEAD", tmp_path / "out")
        with rblstore.init(tmp_path / "other") as other:
            assert not other.status(tmp_path / "out").known

    def test_of_something_else(self, repo: Any, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for directory in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "sources" / "base"):
            with pytest.raises(rblstore.InputError, match="is not a checkout"):
                repo.status(directory)


class TestBranches:
    def test_switch_moves_head_and_checkout_does_not(self, repo: Any, tmp_path: Path) -> None:
        repo.switch("side", create=True, start="HEAD~1")
        assert (repo.branch, repo.head) == ("side", repo.resolve("main~1"))
        repo.checkout("main", tmp_path / "out")
        assert repo.branch == "side"
        assert [(one.name, one.current) for one in repo.branches()] == [("main", False), ("side", True)]

    def test_refusals(self, repo: Any) -> None:
        operations = repo.operations()
        for act, code in (
            (lambda: repo.switch("nobody"), "no_such_branch"),
            (lambda: repo.switch("main", create=True), "ref_exists"),
            (lambda: repo.switch("main", orphan=True), "ref_exists"),
            (lambda: repo.switch("MAIN", create=True), "ref_exists"),
            (lambda: repo.create_branch("main"), "ref_exists"),
            (lambda: repo.create_branch("main/x"), "ref_exists"),
            (lambda: repo.create_branch("x", "nobody"), "unknown_revision"),
            (lambda: repo.create_branch("a..b"), "usage"),
            (lambda: repo.delete_branch("main"), "conflict"),
            (lambda: repo.delete_branch("nobody"), "no_such_branch"),
            (lambda: repo.switch("x", create=True, start="nobody"), "unknown_revision"),
        ):
            with pytest.raises(rblstore.RblError) as caught:
                act()
            assert caught.value.code == code
        assert repo.operations() == operations

    def test_a_deleted_branch_comes_back_by_undo(self, repo: Any) -> None:
        repo.create_branch("side", "HEAD~1")
        tip = repo.resolve("side")
        repo.delete_branch("side")
        with pytest.raises(rblstore.NotFoundError):
            repo.resolve("side")
        repo.undo()
        assert repo.resolve("side") == tip

    def test_switching_to_where_one_is_changes_nothing(self, repo: Any) -> None:
        operations = repo.operations()
        assert repo.switch("main").commit == repo.head
        assert repo.operations() == operations

    def test_an_orphan_branch_without_a_commit_can_be_left(self, repo: Any) -> None:
        head = repo.head
        repo.switch("empty", orphan=True)
        assert [(one.name, one.commit, one.current) for one in repo.branches()] == [
            ("empty", None, True),
            ("main", head, False),
        ]
        assert repo.log(all=True)[0].commit == head
        repo.switch("main")
        assert [one.name for one in repo.branches()] == ["main"]


class TestTags:
    def test_they_name_and_do_not_move(self, repo: Any) -> None:
        tag = repo.create_tag("v1.0", "HEAD~1", message="first", author="Ada")
        assert (tag.commit, tag.message, tag.author) == (repo.resolve("HEAD~1"), "first", "Ada")
        assert repo.tags() == [tag]
        assert repo.log("v1.0")[0].refs == ("tag: v1.0",)
        with pytest.raises(rblstore.ConflictError) as caught:
            repo.create_tag("v1.0")
        assert caught.value.code == "ref_exists"
        repo.delete_tag("v1.0")
        assert repo.tags() == []
        with pytest.raises(rblstore.NotFoundError):
            repo.resolve("v1.0")
        repo.undo()
        assert repo.tags() == [tag]

    @pytest.mark.parametrize("name", ["", "HEAD", "a..b", "f" * 64, "x.lock", "a b"])
    def test_names_that_are_none(self, repo: Any, name: str) -> None:
        with pytest.raises(rblstore.UsageError):
            repo.create_tag(name)

    def test_that_clash(self, repo: Any) -> None:
        repo.create_tag("v1/a")
        for name in ("V1/A", "v1", "v1/a/b"):
            with pytest.raises(rblstore.ConflictError):
                repo.create_tag(name)

    def test_messages_that_no_record_could_hold(self, repo: Any) -> None:
        with pytest.raises(rblstore.InputError):
            repo.create_tag("v1", message="a\0b")
        assert repo.tags() == []

    def test_deleting_what_is_not_there(self, repo: Any) -> None:
        with pytest.raises(rblstore.NotFoundError) as caught:
            repo.delete_tag("v1")
        assert caught.value.code == "no_such_tag"


class TestUndo:
    def test_one_after_another_further_back(self, repo: Any) -> None:
        b, a, base = (entry.commit for entry in repo.log())
        first = repo.undo()
        assert (first.description, repo.head) == ("commit: b", a)
        assert repo.undo().description == "commit: a"
        assert repo.head == base
        repo.undo()
        assert repo.head is None
        with pytest.raises(rblstore.NothingChangedError) as caught:
            repo.undo()
        assert caught.value.code == "nothing_to_undo"
        assert repo.log(b)[0].commit == b  # nothing was deleted

    def test_the_operation_log_tells_it(self, repo: Any) -> None:
        done = repo.undo(author="Cy")
        newest, undone, *_ = repo.operations()
        assert (newest.undoes, newest.author, newest.description) == (undone.id, "Cy", "undo: commit: b")
        assert (undone.id, undone.undone, newest.undone) == (done.undone, True, False)
        assert [one.sequence for one in repo.operations()] == [5, 4, 3, 2, 1]
        assert [one.sequence for one in repo.operations(limit=2)] == [5, 4]

    def test_an_undo_is_undone_by_name(self, repo: Any) -> None:
        head = repo.head
        done = repo.undo()
        repo.undo(done.operation[:8])
        assert repo.head == head
        assert [one.undone for one in repo.operations()] == [False, True, False, False, False, False]
        assert repo.undo().description == done.description  # it holds again, so it is the latest

    def test_after_a_new_commit_the_latest_goes(self, repo: Any, sources: Callable[[str], Path]) -> None:
        repo.undo()
        a = repo.head
        repo.commit("c", behaviors={"c": sources("c")})
        assert repo.undo().description == "commit: c"
        assert repo.head == a
        assert repo.undo().description == "commit: a"

    def test_refs_that_moved_since(self, repo: Any) -> None:
        before = repo.operations()
        with pytest.raises(rblstore.ConflictError) as caught:
            repo.undo("2")
        assert caught.value.code == "undo_conflict"
        assert caught.value.exit_code == 4
        assert "refs/heads/main" in caught.value.message
        assert repo.operations() == before

    def test_where_refs_are_apart_an_earlier_one_is_undone(self, repo: Any) -> None:
        repo.create_branch("side")
        made = repo.operations()[0]
        repo.create_tag("v1")
        repo.undo(str(made.sequence))
        assert [one.name for one in repo.branches()] == ["main"]
        assert [one.name for one in repo.tags()] == ["v1"]

    def test_an_undone_one_again(self, repo: Any) -> None:
        done = repo.undo()
        with pytest.raises(rblstore.ConflictError):
            repo.undo(done.undone)

    @pytest.mark.parametrize(("operation", "code"), [("1", "nothing_to_undo"), ("99", "unknown_revision"), ("x", None)])
    def test_what_cannot_be_undone(self, repo: Any, operation: str, code: str | None) -> None:
        with pytest.raises(rblstore.RblError) as caught:
            repo.undo(operation)
        assert code is None or caught.value.code == code

    def test_a_switch_comes_back(self, repo: Any) -> None:
        repo.switch("side", create=True)
        repo.undo()
        assert repo.branch == "main"
        assert [one.name for one in repo.branches()] == ["main"]


class TestOpening:
    def test_init_and_open(self, tmp_path: Path) -> None:
        root = tmp_path / "new" / "deep"
        rblstore.init(root).close()
        with pytest.raises(rblstore.ConflictError) as caught:
            rblstore.init(root)
        assert caught.value.code == "exists"
        (root / "sub").mkdir()
        for place in (root, root / "sub", root / ".rbl"):
            with rblstore.open(place) as repo:
                assert repo.path == root
        with pytest.raises(rblstore.NoRepositoryError) as missing:
            rblstore.open(tmp_path)
        assert missing.value.exit_code == 3

    def test_another_format(self, tmp_path: Path) -> None:
        rblstore.init(tmp_path).close()
        (tmp_path / ".rbl" / "format").chmod(0o644)
        (tmp_path / ".rbl" / "format").write_bytes(b"rblstore 2\n")
        for act in (rblstore.open, rblstore.reindex):
            with pytest.raises(rblstore.NoRepositoryError):
                act(tmp_path)

    def test_a_configured_author(self, tmp_path: Path) -> None:
        rblstore.init(tmp_path / "store").close()
        (tmp_path / "store" / ".rbl" / "config.toml").chmod(0o644)
        (tmp_path / "store" / ".rbl" / "config.toml").write_text('author = "Ada"\n[storage]\ncompression = "max"\n')
        with rblstore.open(tmp_path / "store") as repo:
            repo.commit("base", identity=write_base(tmp_path / "base"))
            assert repo.log()[0].author == "Ada"
            assert repo.operations()[0].author == "Ada"

    def test_the_composition_that_the_catalog_gives_is_the_record(self, repo: Any) -> None:
        entry = repo.log()[0]
        assert repo._store.record(entry.composition, Composition).slots == entry.slots
