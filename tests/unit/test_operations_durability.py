"""The storage under the operations: lost races, lost and old catalogs, damaged packs, and what fsck says of them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import base_tensors, digests, values, write_adapter, write_base

import rblstore
from rblstore.catalog.operation_log import next_operation
from rblstore.objects.history_records import RefChange
from rblstore.objects.ids import PackId
from rblstore.repository import utc_now
from rblstore.storage.disk import DiskBackend
from rblstore.storage.pack_reader import PackReader


@pytest.fixture
def sources(tmp_path: Path) -> Callable[[str], Path]:
    """Adapters by name, each with values of its own."""

    def make(name: str) -> Path:
        folder = tmp_path / "sources" / name
        return folder if folder.exists() else write_adapter(folder, seed=sum(name.encode()))

    write_base(tmp_path / "sources" / "base")
    return make


@pytest.fixture
def store(tmp_path: Path, sources: Callable[[str], Path]) -> Path:
    """A repository: base <- a <- b (main), base <- c (side), a tag, a deleted branch, an undone commit, statements."""
    root = tmp_path / "store"
    with rblstore.init(root) as repo:
        repo.commit("base", identity=tmp_path / "sources" / "base", license="mit", meta={"team": "one"})
        repo.create_branch("side")
        repo.create_branch("gone")
        repo.commit("a", behaviors={"a": sources("a")})
        repo.commit("c", behaviors={"c": sources("c")}, branch="side")
        repo.create_tag("v1", message="first")
        repo.commit("b", behaviors={"b": sources("b")}, weights={"b": 0.5}, license="apache-2.0")
        repo.delete_branch("gone")
        repo.commit("oops", remove=["a"])
        repo.undo()
        for license in ("gemma", "bsd-3-clause", "apache-2.0"):
            repo.commit("said", identity=tmp_path / "sources" / "base", license=license, allow_empty=True)
    return root


def story(repo: Any) -> Any:
    """Everything that history says."""
    return (
        repo.log(all=True),
        repo.log("v1"),
        repo.branches(),
        repo.tags(),
        repo.operations(),
        repo.status(),
        repo.audit(),
        [repo.show(entry.commit) for entry in repo.log(all=True)],
        repo.probes(),
    )


def packs_of(store: Path, kind: str) -> list[Path]:
    return sorted(
        path for path in (store / ".rbl" / "packs").rglob("*.pack") if path.read_bytes()[8:9] == kind.encode()
    )


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


class TestReindex:
    def test_a_deleted_catalog_comes_back_as_it_was(self, store: Path) -> None:
        with rblstore.open(store) as repo:
            before = story(repo)
        (store / ".rbl" / "catalog.db").unlink()
        with pytest.raises(rblstore.CorruptError, match="has no catalog") as caught:
            rblstore.open(store)
        assert "rbl reindex" in str(caught.value.hint)
        result = rblstore.reindex(store)
        assert (result.operations, result.skipped) == (len(before[4]), ())
        with rblstore.open(store) as repo:
            assert story(repo) == before
            assert repo.fsck(full=True).damages == ()
            assert repo.audit().components[0].license == ("apache-2.0",)

    def test_it_is_the_same_again(self, store: Path) -> None:
        with rblstore.open(store) as repo:
            before = story(repo)
        first = rblstore.reindex(store)
        assert rblstore.reindex(store) == first
        with rblstore.open(store) as repo:
            assert story(repo) == before

    def test_the_order_of_evidence_does_not_rest_on_names_of_packs(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "base")
        said = [f"LicenseRef-{at}" for at in range(6)]
        with rblstore.init(tmp_path / "store") as repo:
            for license in said:
                identity = repo.commit("said", identity=base, license=license, allow_empty=True).identity
            with repo._store.catalog.read() as reader:
                before = reader.evidence(identity)
            assert len(before) == len(said)
            assert repo.audit().components[0].license == (said[-1],)
        rblstore.reindex(tmp_path / "store")
        with rblstore.open(tmp_path / "store") as repo:
            with repo._store.catalog.read() as reader:
                assert reader.evidence(identity) == before
            assert repo.audit().components[0].license == (said[-1],)

    def test_a_damaged_pack_is_passed_over_and_named(self, store: Path) -> None:
        pack = packs_of(store, "C")[0]
        flip(pack, pack.stat().st_size - 1)
        result = rblstore.reindex(store)
        assert [name for name, _ in result.skipped] == [pack.stem]

    @pytest.mark.usefixtures("impatient")
    def test_it_waits_for_nobody_who_writes(self, store: Path) -> None:
        with rblstore.open(store) as repo, repo._store.transaction("me"):
            with pytest.raises(rblstore.LockedError) as caught:
                rblstore.reindex(store)
            assert caught.value.exit_code == 7


class TestReconciling:
    def test_an_old_catalog_is_brought_up_to_date(
        self, store: Path, tmp_path: Path, sources: Callable[[str], Path]
    ) -> None:
        old = tmp_path / "old.db"
        shutil.copy(store / ".rbl" / "catalog.db", old)
        with rblstore.open(store) as repo:
            for name in "defghi":
                repo.commit(name, behaviors={name: sources(name)}, license="mit")
            before = story(repo)
        shutil.copy(old, store / ".rbl" / "catalog.db")
        with rblstore.open(store) as repo:
            assert story(repo) == before
            assert repo.fsck(full=True).damages == ()

    def test_a_log_without_the_last_lines_gets_them_back(self, store: Path) -> None:
        log = store / ".rbl" / "refs.log"
        whole = log.read_bytes()
        with rblstore.open(store) as repo:
            before = story(repo)
        for keep in (whole[: whole.rindex(b"\n", 0, -1) + 1], whole[:-20], b""):
            log.write_bytes(keep)
            with rblstore.open(store) as repo:
                assert story(repo) == before
                assert repo.fsck().damages == ()
            assert log.read_bytes() == whole

    def test_a_log_of_another_history_is_corruption(self, store: Path, tmp_path: Path) -> None:
        log = store / ".rbl" / "refs.log"
        lines = log.read_bytes().count(b"\n")
        for extra in (0, 1):
            other = tmp_path / f"other{extra}"
            with rblstore.init(other) as repo:
                repo.commit("base", identity=tmp_path / "sources" / "base")
                while len(repo.operations()) < lines + extra:
                    repo.commit("more", allow_empty=True)
            log.write_bytes((other / ".rbl" / "refs.log").read_bytes())
            with pytest.raises(rblstore.CorruptError) as caught:
                rblstore.open(store)
            assert caught.value.exit_code == 6
            assert "refs.log" in f"{caught.value.message} {caught.value.object}"

    def test_a_damaged_line_is_corruption(self, store: Path) -> None:
        log = store / ".rbl" / "refs.log"
        flip(log, 200)
        with rblstore.open(store) as repo:
            damages = repo.fsck().damages
        assert [damage.kind for damage in damages] == ["log"]
        with pytest.raises(rblstore.CorruptError):
            rblstore.reindex(store)


class TestRaces:
    def test_of_two_commits_on_one_branch_the_second_is_refused(
        self, store: Path, sources: Callable[[str], Path], tmp_path: Path
    ) -> None:
        with rblstore.open(store) as mine, rblstore.open(store) as theirs:
            tip = mine.head
            won: list[Any] = []

            def meanwhile(_: Any) -> None:
                if not won:
                    won.append(theirs.commit("theirs", behaviors={"e": sources("e")}))

            with pytest.raises(rblstore.ConflictError) as caught:
                mine.commit("mine", behaviors={"d": sources("d")}, progress=meanwhile)
            assert caught.value.code == "ref_moved"
            assert caught.value.object == "refs/heads/main"
            assert mine.head == won[0].commit
            assert mine.resolve("HEAD^") == tip
            assert not list((store / ".rbl" / "tmp").iterdir())
            assert mine.fsck(full=True).damages == ()
            again = mine.commit("mine", behaviors={"d": sources("d")})
            assert again.parents == (won[0].commit,)
            mine.checkout("HEAD", tmp_path / "out")
            assert (tmp_path / "out" / "behaviors" / "d" / "adapter_model.safetensors").read_bytes() == (
                sources("d") / "adapter_model.safetensors"
            ).read_bytes()
        rblstore.reindex(store)
        with rblstore.open(store) as repo:
            assert repo.head == again.commit
            assert repo.fsck(full=True).damages == ()

    def test_commits_on_two_branches_both_stand(self, store: Path, sources: Callable[[str], Path]) -> None:
        with rblstore.open(store) as mine, rblstore.open(store) as theirs:
            won: list[Any] = []

            def meanwhile(_: Any) -> None:
                if not won:
                    won.append(theirs.commit("theirs", behaviors={"e": sources("e")}, branch="side"))

            result = mine.commit("mine", behaviors={"d": sources("d")}, progress=meanwhile)
            assert mine.resolve("side") == won[0].commit
            assert mine.head == result.commit
            assert mine.fsck().damages == ()

    def test_a_branch_made_meanwhile(self, store: Path, sources: Callable[[str], Path], tmp_path: Path) -> None:
        other = write_base(tmp_path / "other", seed=8)
        with rblstore.open(store) as mine, rblstore.open(store) as theirs:
            won: list[Any] = []

            def meanwhile(_: Any) -> None:
                if not won:
                    won.append(theirs.create_branch("new"))

            with pytest.raises(rblstore.ConflictError) as caught:
                mine.commit("mine", identity=other, branch="new", progress=meanwhile)
            assert caught.value.code == "ref_moved"
            assert mine.resolve("new") == won[0].commit


class TestDamage:
    @pytest.fixture
    def damaged(self, store: Path) -> tuple[Path, str]:
        """The store with one byte of the embedding's frame flipped, and the content that it belongs to."""
        import hashlib

        wanted = hashlib.sha256(base_tensors()["model.embed_tokens.weight"].data).hexdigest()
        for path in packs_of(store, "C"):
            reader = PackReader(DiskBackend(store / ".rbl"), PackId(path.stem))
            for location in reader.summary().locations:
                if location.content == wanted:
                    data = path.read_bytes()
                    stored = base_tensors()["model.embed_tokens.weight"].data
                    assert data.count(stored) == 1  # so small that it lies there as it is
                    flip(path, data.index(stored) + 5)
                    return store, wanted
        raise AssertionError("the embedding is in no pack")

    def test_checkout_load_and_revert_refuse_it_by_name(self, damaged: tuple[Path, str], tmp_path: Path) -> None:
        store, content = damaged
        with rblstore.open(store) as repo:
            head, operations = repo.head, repo.operations()
            for act in (
                lambda: repo.checkout("HEAD", tmp_path / "out"),
                lambda: repo.load("HEAD"),
                lambda: repo.revert(behavior="b"),
            ):
                with pytest.raises(rblstore.CorruptError) as caught:
                    act()
                assert caught.value.exit_code == 6
                assert caught.value.object == content
                assert content[:12] in caught.value.message
            assert (repo.head, repo.operations()) == (head, operations)
        assert not (tmp_path / "out").exists()
        assert not list((store / ".rbl" / "tmp").iterdir())

    @pytest.mark.parametrize("full", [False, True])
    def test_fsck_names_it_and_what_needs_it(self, damaged: tuple[Path, str], full: bool) -> None:
        store, content = damaged
        before = digests(store / ".rbl" / "packs")
        with rblstore.open(store) as repo:
            result = repo.fsck(full=full)
            identity = repo.log()[0].identity
            commits = [entry.commit for entry in repo.log(all=True)]
        assert not result.ok
        (damage,) = result.damages
        assert (damage.kind, damage.object) == ("content", content)
        assert "tensor model.embed_tokens.weight" in damage.needed_by
        assert f"identity {identity.short} (model.safetensors)" in damage.needed_by
        assert any(word.startswith("commit ") for word in damage.needed_by)
        assert len(commits) > 5
        assert digests(store / ".rbl" / "packs") == before

    def test_a_missing_pack_is_named_with_what_needs_it(self, store: Path) -> None:
        gone = packs_of(store, "C")[0]
        gone.unlink()
        with rblstore.open(store) as repo:
            result = repo.fsck()
        assert not result.ok
        assert gone.stem in [damage.object for damage in result.damages]
        assert any("commit" in word for damage in result.damages for word in damage.needed_by)

    def test_every_flipped_byte_of_every_pack_is_found(self, store: Path) -> None:
        for path in [*packs_of(store, "C")[:2], *packs_of(store, "R")[:2]]:
            whole = path.read_bytes()
            for at in range(0, len(whole), max(1, len(whole) // 6)):
                flip(path, at)
                with rblstore.open(store) as repo:
                    assert not repo.fsck(full=True).ok, (path.stem, at)
                path.chmod(0o644)
                path.write_bytes(whole)
        with rblstore.open(store) as repo:
            assert repo.fsck(full=True).ok

    def test_a_ref_to_something_that_is_not_stored(self, store: Path) -> None:
        with rblstore.open(store) as repo:
            with repo._store.catalog.write() as index:
                change = RefChange("refs/heads/odd", None, "ab" * 32)
                index.apply(next_operation(index, "odd", [change], "me", utc_now()))
            repo._store.append_operations()
        with rblstore.open(store) as repo:
            assert [(one.object, one.kind) for one in repo.fsck().damages] == [("refs/heads/odd", "ref")]

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE slots SET weight = 2.0 WHERE name = 'b'",
            "UPDATE slots SET name = 'z' WHERE name = 'b'",
            "UPDATE commits SET message = 'another'",
            "UPDATE commits SET author = 'another'",
            "DELETE FROM commit_parents",
            "DELETE FROM contents WHERE size = 64",
            "UPDATE contents SET first_entry = first_entry + 1",
            "UPDATE records SET kind = 'tag' WHERE kind = 'identity'",
            "DELETE FROM evidence WHERE position > 20",
            "UPDATE refs SET value = (SELECT id FROM commits WHERE generation = 1) WHERE name = 'refs/heads/main'",
        ],
    )
    def test_a_catalog_that_tells_something_else_is_named_and_cured(self, store: Path, change: str) -> None:
        with rblstore.open(store) as repo:
            before = story(repo)
        with sqlite3.connect(store / ".rbl" / "catalog.db") as connection:
            assert connection.execute(change).rowcount > 0
        connection.close()
        with rblstore.open(store) as repo:
            damages = repo.fsck().damages
        assert damages
        assert any("rbl reindex" in damage.hint for damage in damages), damages
        rblstore.reindex(store)
        with rblstore.open(store) as repo:
            assert repo.fsck().damages == ()
            assert story(repo) == before

    def test_a_whole_repository_is_whole(self, store: Path) -> None:
        with rblstore.open(store) as repo:
            result = repo.fsck(full=True)
            assert result.ok
            assert (result.operations, result.commits) == (len(repo.operations()), len(repo.log(all=True)) + 1)
            assert result.packs == len(packs_of(store, "C")) + len(packs_of(store, "R"))


def test_a_new_tensor_costs_what_it_holds(tmp_path: Path) -> None:
    """Weights that are stored already are found by digest, in whatever file and under whatever name."""
    base = write_base(tmp_path / "base")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        twin = write_base(tmp_path / "twin", lm_head__weight=values(8, 4, seed=51))
        assert repo.commit("twin", identity=twin, allow_empty=True).added_contents == 0
