"""Committing: what is taken, what is refused, what is said about it, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import (
    WIDTH,
    Tensor,
    adapter_name,
    base_tensors,
    values,
    write_adapter,
    write_base,
    write_safetensors,
)

import rblstore
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.operations.importing import Importer


@pytest.fixture
def repo(tmp_path: Path) -> Any:
    with rblstore.init(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.fixture
def polite(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "polite")


def state(repo: Any) -> Any:
    """Everything that a refused command must leave as it was."""
    return repo.head, repo.branches(), repo.operations(), list((repo.path / ".rbl" / "tmp").iterdir())


def packs(repo: Any) -> list[str]:
    return sorted(path.name for path in (repo.path / ".rbl" / "packs").rglob("*.pack"))


def refused(repo: Any, family: type[rblstore.RblError], code: str, /, *arguments: Any, **options: Any) -> Any:
    """Commits, expects an error of a family and code, and that nothing changed."""
    before, stored = state(repo), packs(repo)
    with pytest.raises(family) as caught:
        repo.commit(*(arguments or ("refused",)), **options)
    assert caught.value.code == code, caught.value
    assert state(repo) == before
    assert packs(repo) == stored
    assert not before[-1]
    return caught.value


def test_a_commit_says_what_it_made(repo: Any, base: Path, polite: Path) -> None:
    first = repo.commit("base\n\nmore", identity=base, author="Ada <ada@example.org>")
    assert (first.branch, first.parents, first.slots) == ("main", (), ())
    assert repo.head == first.commit
    sizes = sum(file.stat().st_size for file in base.iterdir())
    assert first.added_bytes == sizes
    assert first.added_contents == len(base_tensors()) + 2  # the header and config.json
    assert first.new_bytes == sizes
    second = repo.commit("polite", behaviors={"polite": polite}, weights={"polite": 0.5})
    assert second.parents == (first.commit,)
    assert second.identity == first.identity
    assert [(slot.name, slot.weight) for slot in second.slots] == [("polite", 0.5)]
    assert not list((repo.path / ".rbl" / "tmp").iterdir())


def test_content_already_stored_is_not_stored_again(repo: Any, base: Path, tmp_path: Path) -> None:
    repo.commit("base", identity=base)
    tuned = write_base(tmp_path / "tuned", model__norm__weight=values(WIDTH, seed=7))
    result = repo.commit("tuned", identity=tuned)
    assert result.added_contents == 1  # only the norm; the header says the same
    assert (result.new_bytes, result.added_bytes) == (4 * WIDTH, sum(path.stat().st_size for path in tuned.iterdir()))


def test_the_same_bytes_give_the_same_ids_in_another_repository(
    repo: Any, base: Path, polite: Path, tmp_path: Path
) -> None:
    repo.commit("one", identity=base, license="mit")
    mine = repo.commit("two", behaviors={"a": polite})
    with rblstore.init(tmp_path / "other") as other:
        theirs = other.commit("at once", identity=base, behaviors={"a": polite}, author="somebody else")
    assert (mine.identity, mine.slots, mine.composition) == (theirs.identity, theirs.slots, theirs.composition)


class TestNothingChanged:
    def test_the_same_composition_is_refused(self, repo: Any, base: Path, polite: Path) -> None:
        repo.commit("base", identity=base, behaviors={"polite": polite})
        for options in (
            {"identity": base},
            {"behaviors": {"polite": polite}},
            {"weights": {"polite": 1.0}},
            {},
        ):
            error = refused(repo, rblstore.NothingChangedError, "nothing_changed", "again", **options)
            assert error.exit_code == 1
            assert "--allow-empty" in error.hint

    def test_allow_empty_records_it_all_the_same(self, repo: Any, base: Path) -> None:
        first = repo.commit("base", identity=base)
        again = repo.commit("again", allow_empty=True)
        assert again.composition == first.composition
        assert again.parents == (first.commit,)
        assert again.added_contents == 0


class TestSlots:
    def test_remove_takes_a_behavior_out_and_keeps_the_others_in_place(
        self, repo: Any, base: Path, tmp_path: Path
    ) -> None:
        adapters = {name: write_adapter(tmp_path / name, seed=at) for at, name in enumerate("abc", start=1)}
        repo.commit("all", identity=base, behaviors=adapters)
        result = repo.commit("without", remove=["b"])
        assert [slot.name for slot in result.slots] == ["a", "c"]

    def test_a_replaced_behavior_keeps_its_place_and_weight(self, repo: Any, base: Path, tmp_path: Path) -> None:
        adapters = {name: write_adapter(tmp_path / name, seed=at) for at, name in enumerate("ab", start=1)}
        repo.commit("both", identity=base, behaviors=adapters, weights={"a": 0.25})
        new = write_adapter(tmp_path / "new", seed=9)
        result = repo.commit("new a, and c", behaviors={"c": adapters["b"], "a": new})
        assert [(slot.name, slot.weight) for slot in result.slots] == [("a", 0.25), ("b", 1.0), ("c", 1.0)]
        assert repo.diff("HEAD^", "HEAD").slots[0].change == "replaced"

    @pytest.mark.parametrize("options", [{"remove": ["nobody"]}, {"weights": {"nobody": 2.0}}])
    def test_a_slot_that_is_not_there(self, repo: Any, base: Path, options: Any) -> None:
        repo.commit("base", identity=base)
        error = refused(repo, rblstore.NotFoundError, "no_such_behavior", **options)
        assert "'nobody'" in error.message

    def test_removed_and_weighed_at_once(self, repo: Any, base: Path, polite: Path) -> None:
        repo.commit("base", identity=base, behaviors={"polite": polite})
        refused(repo, rblstore.NotFoundError, "no_such_behavior", remove=["polite"], weights={"polite": 2.0})
        refused(repo, rblstore.UsageError, "usage", remove=["polite"], behaviors={"polite": polite})

    @pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1", None, True])
    def test_a_weight_that_is_no_number(self, repo: Any, base: Path, polite: Path, weight: Any) -> None:
        repo.commit("base", identity=base)
        before = state(repo)
        with pytest.raises(rblstore.RblError):
            repo.commit("polite", behaviors={"polite": polite}, weights={"polite": weight})
        assert state(repo) == before

    def test_names_that_fold_to_one(self, repo: Any, base: Path, polite: Path, tmp_path: Path) -> None:
        repo.commit("base", identity=base, behaviors={"polite": polite})
        before = state(repo)
        with pytest.raises(rblstore.RblError, match=r"(?i)polite"):
            repo.commit("again", behaviors={"POLITE": write_adapter(tmp_path / "two", seed=2)})
        assert state(repo) == before

    @pytest.mark.parametrize("name", ["", "a/b", "..", "con", "-x", "a b", "ü"])
    def test_names_that_are_none(self, repo: Any, base: Path, polite: Path, name: str) -> None:
        repo.commit("base", identity=base)
        refused(repo, rblstore.UsageError, "usage", behaviors={name: polite})


class TestWhereItGoes:
    def test_branch_commits_elsewhere_and_leaves_head(self, repo: Any, base: Path, polite: Path) -> None:
        first = repo.commit("base", identity=base)
        repo.create_branch("side")
        result = repo.commit("polite", behaviors={"polite": polite}, branch="side")
        assert (result.branch, result.parents) == ("side", (first.commit,))
        assert (repo.branch, repo.head) == ("main", first.commit)
        assert repo.resolve("side") == result.commit

    def test_a_branch_that_is_not_there_begins_with_the_commit(self, repo: Any, base: Path, tmp_path: Path) -> None:
        repo.commit("base", identity=base)
        other = repo.commit("other", identity=write_base(tmp_path / "other", seed=5), branch="encoders")
        assert other.parents == ()
        assert {branch.name for branch in repo.branches()} == {"encoders", "main"}
        assert repo.branch == "main"

    def test_orphan_branches_hold_other_identities(self, repo: Any, base: Path, tmp_path: Path) -> None:
        first = repo.commit("base", identity=base)
        repo.switch("other", orphan=True)
        assert repo.head is None
        error = refused(repo, rblstore.UsageError, "no_identity", behaviors={"a": write_adapter(tmp_path / "a")})
        assert "--identity" in error.hint
        second = repo.commit("other", identity=write_base(tmp_path / "other", seed=5))
        assert second.parents == ()
        assert second.identity != first.identity
        assert [entry.commit for entry in repo.log()] == [second.commit]
        assert {entry.commit for entry in repo.log(all=True)} == {first.commit, second.commit}
        repo.switch("main")
        assert repo.head == first.commit

    @pytest.mark.parametrize("name", ["HEAD", "a..b", "x.lock", "a//b", "0" * 64, "refs heads"])
    def test_a_branch_name_that_is_none(self, repo: Any, base: Path, name: str) -> None:
        refused(repo, rblstore.UsageError, "usage", identity=base, branch=name)

    def test_a_branch_name_that_clashes_with_another(self, repo: Any, base: Path, tmp_path: Path) -> None:
        repo.commit("base", identity=base, branch="a/b")
        other = write_base(tmp_path / "other", seed=5)
        for name in ("a", "a/b/c", "A/B"):
            refused(repo, rblstore.ConflictError, "ref_exists", identity=other, branch=name)


class TestMessages:
    @pytest.mark.parametrize("message", ["", " \n\t"])
    def test_empty(self, repo: Any, base: Path, message: str) -> None:
        refused(repo, rblstore.UsageError, "usage", message, identity=base)

    @pytest.mark.parametrize("message", ["a\0b", "\ud800", "x" * (limits.MESSAGE_BYTES + 1)])
    def test_that_no_record_could_hold(self, repo: Any, base: Path, message: str) -> None:
        refused(repo, rblstore.InputError, "bad_input", message, identity=base)

    @pytest.mark.parametrize("author", ["a\0b", "\ud800", "x" * (limits.TEXT_BYTES + 1)])
    def test_authors_that_no_record_could_hold(self, repo: Any, base: Path, author: str) -> None:
        refused(repo, rblstore.UsageError, "usage", identity=base, author=author)
        before = repo.operations()
        with pytest.raises(rblstore.UsageError):
            repo.switch("elsewhere", orphan=True, author=author)
        assert repo.operations() == before
        assert repo.fsck().ok

    def test_an_operation_is_described_in_one_short_line(self, repo: Any, base: Path) -> None:
        repo.commit("x" * 5000 + "\nsecond line", identity=base)
        assert repo.operations()[0].description == ("commit: " + "x" * 5000)[:1000]
        assert repo.log()[0].message.endswith("second line")


class TestDirectories:
    def test_of_two_pickles_beside_safetensors_both_are_left_out_and_named(self, repo: Any, base: Path) -> None:
        for name in ("optimizer.pt", "training_args.bin"):
            (base / name).write_bytes(b"\x80\x04}q\x00.")
        (base / ".git").mkdir()
        (base / ".git" / "HEAD").write_text("ref")
        result = repo.commit("base", identity=base)
        reasons = dict(result.left_out)
        assert set(reasons) == {".git", "optimizer.pt", "training_args.bin"}
        assert "pickle" in reasons["optimizer.pt"]
        assert repo.show(result.identity).identity.files == 2

    def test_include_opaque_keeps_pickles_as_bytes(self, repo: Any, base: Path, tmp_path: Path) -> None:
        (base / "optimizer.pt").write_bytes(b"\x80\x04}q\x00.")
        result = repo.commit("base", identity=base, include_opaque=True)
        assert result.left_out == ()
        repo.checkout("HEAD", tmp_path / "out")
        assert (tmp_path / "out" / "optimizer.pt").read_bytes() == b"\x80\x04}q\x00."

    def test_only_pickles_is_refused_with_what_to_run(self, repo: Any, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"\x80\x04}q\x00.")
        for opaque in (False, True):
            error = refused(
                repo, rblstore.InputError, "pickle_refused", identity=tmp_path / "old", include_opaque=opaque
            )
            assert "pytorch_model.bin" in error.message
            assert "safetensors" in error.hint

    def test_a_pickle_that_is_called_safetensors(self, repo: Any, base: Path) -> None:
        (base / "model.safetensors").write_bytes(b"\x80\x04}q\x00.")
        error = refused(repo, rblstore.InputError, "pickle_refused", identity=base)
        assert "model.safetensors" in error.message

    @pytest.mark.parametrize("path", ["behaviors/notes.txt", "Behaviors", "rbl-composition.JSON"])
    def test_files_where_a_checkout_keeps_its_own(self, repo: Any, base: Path, path: str) -> None:
        (base / path).parent.mkdir(exist_ok=True)
        (base / path).write_text("mine")
        error = refused(repo, rblstore.ConflictError, "layout_collision", identity=base)
        assert error.object == path

    def test_a_file_of_an_adapter_that_no_checkout_could_hold(self, repo: Any, base: Path, polite: Path) -> None:
        repo.commit("base", identity=base)
        deep = polite.joinpath(*(["d" * 200] * 5))
        deep.mkdir(parents=True)
        (deep / "f").write_text("x")
        refused(repo, rblstore.InputError, "bad_input", behaviors={"n" * 60: polite})

    def test_a_directory_that_is_not_there(self, repo: Any, tmp_path: Path) -> None:
        error = refused(repo, rblstore.InputError, "bad_directory", identity=tmp_path / "nowhere")
        assert "nowhere" in error.message

    def test_a_base_given_as_a_behavior(self, repo: Any, base: Path) -> None:
        repo.commit("base", identity=base)
        error = refused(repo, rblstore.NothingChangedError, "nothing_changed", behaviors={"b": base})
        assert error.object == "b"

    def test_a_directory_that_is_neither_an_adapter_nor_a_checkpoint(self, repo: Any, base: Path, polite: Path) -> None:
        repo.commit("base", identity=base)
        (polite / "adapter_config.json").unlink()
        error = refused(repo, rblstore.InputError, "bad_directory", behaviors={"b": polite})
        assert "adapter_config.json" in error.message

    def test_an_adapter_alone_is_no_identity(self, repo: Any, polite: Path) -> None:
        refused(repo, rblstore.InputError, "bad_directory", identity=polite)

    def test_a_checkout_is_committed_without_its_own_files(
        self, repo: Any, base: Path, polite: Path, tmp_path: Path
    ) -> None:
        first = repo.commit("base", identity=base)
        repo.commit("polite", behaviors={"polite": polite})
        repo.checkout("HEAD", tmp_path / "out")
        with rblstore.init(tmp_path / "other") as other:
            again = other.commit("from a checkout", identity=tmp_path / "out")
        assert again.identity == first.identity


def test_nan_is_committed_with_a_warning_that_names_the_tensor(repo: Any, tmp_path: Path) -> None:
    nan = np.full(WIDTH, np.nan, "<f4")
    nan[0] = 1
    base = write_base(tmp_path / "base", model__norm__weight=Tensor("F32", (WIDTH,), nan.tobytes()))
    result = repo.commit("base", identity=base)
    assert result.warnings == ("model.safetensors: model.norm.weight holds 3 NaN",)
    repo.checkout("HEAD", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    adapter = write_adapter(
        tmp_path / "a",
        extra={adapter_name(0, "q", "B"): Tensor("F32", (WIDTH, 2), np.full(8, np.nan, "<f4").tobytes())},
    )
    assert repo.commit("a", behaviors={"a": adapter}).warnings == (
        f"a: adapter_model.safetensors: {adapter_name(0, 'q', 'B')} holds 8 NaN",
    )


class TestFailures:
    """Whatever fails in the middle, nothing moved and nothing lies about."""

    def test_a_header_that_lies(self, repo: Any, base: Path) -> None:
        good = (base / "model.safetensors").read_bytes()
        (base / "model.safetensors").write_bytes(good[:-4])
        refused(repo, rblstore.InputError, "bad_safetensors", identity=base)

    def test_the_second_shard_is_broken(self, repo: Any, base: Path) -> None:
        write_safetensors(base / "zz.safetensors", {"x": values(2)})
        broken = (base / "zz.safetensors").read_bytes().replace(b"[2]", b"[3]")
        (base / "zz.safetensors").write_bytes(broken)
        refused(repo, rblstore.InputError, "bad_safetensors", identity=base)

    def test_the_adapter_after_a_good_identity_is_broken(self, repo: Any, base: Path, polite: Path) -> None:
        (polite / "adapter_config.json").write_text('{"peft_type": "LORA", "peft_type": "IA3"}')
        error = refused(repo, rblstore.InputError, "bad_adapter_config", identity=base, behaviors={"polite": polite})
        assert "peft_type" in error.message

    def test_an_index_that_names_a_missing_shard(self, repo: Any, base: Path) -> None:
        (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
        index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
        error = refused(repo, rblstore.InputError, "bad_index", identity=base)
        assert "model-00002-of-00002.safetensors" in error.message

    def test_the_reader_is_interrupted(self, repo: Any, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before, stored = state(repo), packs(repo)

        def interrupted(event: Any) -> None:
            if event.done > 100:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            repo.commit("base", identity=base, progress=interrupted)
        assert (state(repo), packs(repo)) == (before, stored)
        assert repo.commit("base", identity=base).parents == ()

    def test_a_file_that_changes_while_it_is_read(self, repo: Any, base: Path) -> None:
        def grow(event: Any) -> None:
            if event.stage.endswith("config.json"):
                with (base / "config.json").open("a") as stream:
                    stream.write(" ")

        error = refused(repo, rblstore.ConflictError, "source_changed", identity=base, progress=grow)
        assert "config.json" in error.message

    def test_binding_fails_after_everything_was_read(
        self, repo: Any, base: Path, polite: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repo.commit("base", identity=base)

        def fails(*_: Any) -> Any:
            raise rblstore.InputError("no")

        monkeypatch.setattr(Importer, "behavior", fails)
        refused(repo, rblstore.InputError, "bad_input", behaviors={"polite": polite})


class TestLimits:
    def test_a_manifest_with_too_many_entries_is_never_stored(
        self, repo: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        many = {f"t{at}": values(1, seed=at) for at in range(100)}
        write_safetensors(base / "more.safetensors", many)
        monkeypatch.setattr(limits, "RECORD_ENTRIES", 400)
        error = refused(repo, rblstore.InputError, "bad_input", identity=base)
        assert "more than the 400 allowed" in error.message
        monkeypatch.setattr(limits, "RECORD_ENTRIES", 1000)
        repo.commit("base", identity=base)
        repo.checkout("HEAD", tmp_path / "out")

    def test_a_manifest_of_the_largest_models_fits(self) -> None:
        entry = {"content": "0" * 64, "dtype": "F8_E4M3", "name": "model.layers.60.mlp.experts.1.down_proj.weight"}
        body = json.dumps({"header": "0" * 64, "tensors": [{**entry, "shape": [7168, 2048]}] * 140_000}).encode()
        decode_json(body, what="manifest", max_bytes=limits.RECORD_BYTES, max_entries=limits.RECORD_ENTRIES)


class TestStatements:
    CARD = "---\nlicense: mit\ndatasets:\n- imdb\nbase_model: org/base\n---\n# A card\n"

    def test_other_with_a_name_is_one_licence(self, repo: Any, base: Path) -> None:
        (base / "README.md").write_text("---\nlicense: other\nlicense_name: gemma\n---\n")
        repo.commit("base", identity=base)
        result = repo.audit()
        assert result.components[0].license == ("gemma",)
        assert not result.warnings

    def test_what_a_card_and_the_committer_say_is_kept(self, repo: Any, base: Path, polite: Path) -> None:
        (base / "README.md").write_text(self.CARD)
        result = repo.commit(
            "base", identity=base, license="apache-2.0", meta={"team": "core", "source": "https://example.org/m"}
        )
        claims = {(claim.key, claim.value, claim.origin) for claim in repo.show(result.identity).identity.claims}
        assert {
            ("license", "mit", "README.md"),
            ("license", "apache-2.0", "api"),
            ("dataset", "imdb", "README.md"),
            ("base_model", "org/base", "README.md"),
            ("meta.team", "core", "api"),
            ("source", "https://example.org/m", "api"),
            ("name", "base", "path"),
        } <= claims
        audit = repo.audit()
        identity = audit.components[0]
        assert (identity.role, identity.name) == ("identity", "base")
        assert set(identity.license) == {"mit", "apache-2.0"}
        assert identity.datasets == ("imdb",)
        assert identity.source == ("https://example.org/m",)
        assert any("the licences stated differ" in warning for warning in audit.warnings)

    def test_a_part_without_a_licence_is_named(self, repo: Any, base: Path, polite: Path) -> None:
        repo.commit("base", identity=base, license="mit")
        repo.commit("polite", behaviors={"polite": polite}, weights={"polite": 0.5})
        audit = repo.audit()
        assert [(part.role, part.name, part.weight) for part in audit.components] == [
            ("identity", "base", 1.0),
            ("behavior", "polite", 0.5),
        ]
        assert audit.warnings == ("behavior polite: no licence is stated; by default nothing is permitted",)

    def test_a_later_statement_supersedes_key_by_key(self, repo: Any, base: Path) -> None:
        first = repo.commit("base", identity=base, license="mit", meta={"team": "core"})
        for license in ("gemma", "apache-2.0"):
            again = repo.commit("licence corrected", identity=base, license=license, allow_empty=True)
            assert again.composition == first.composition  # no id depends on what is said
            component = repo.audit().components[0]
            assert component.license == (license,)
            assert ("meta.team", "core") in [(claim.key, claim.value) for claim in component.claims]
        assert repo.audit("HEAD~2").components[0].license == ("apache-2.0",)

    def test_a_statement_is_not_repeated(self, repo: Any, base: Path) -> None:
        repo.commit("base", identity=base, license="mit")
        records = repo.fsck().records
        repo.commit("again", identity=base, license="mit", allow_empty=True)
        assert repo.fsck().records == records + 1  # the commit

    @pytest.mark.parametrize(
        "options",
        [{"license": " "}, {"license": ""}, {"meta": {"": "x"}}, {"meta": {"a": ""}}],
    )
    def test_that_say_nothing(self, repo: Any, base: Path, options: Any) -> None:
        refused(repo, rblstore.UsageError, "usage", identity=base, **options)

    def test_about_nothing(self, repo: Any, base: Path, polite: Path) -> None:
        repo.commit("base", identity=base, behaviors={"polite": polite})
        refused(repo, rblstore.UsageError, "usage", remove=["polite"], license="mit")

    def test_too_long_or_not_text(self, repo: Any, base: Path) -> None:
        for options in ({"meta": {"k" * 300: "v"}}, {"meta": {"k": "v\0"}}, {"license": "x" * 70_000}):
            refused(repo, rblstore.InputError, "bad_input", identity=base, **options)


class TestGround:
    """Torch-free cases of what a behavior stands on; the tests under integration/ have the others."""

    def test_another_shape_is_refused_by_name(self, repo: Any, base: Path, tmp_path: Path) -> None:
        repo.commit("base", identity=base)
        wide = write_adapter(
            tmp_path / "wide",
            layers=0,
            extra={adapter_name(0, "q", "A"): values(2, 6), adapter_name(0, "q", "B"): values(6, 2)},
        )
        error = refused(repo, rblstore.ConflictError, "wrong_base", behaviors={"wide": wide})
        assert "self_attn.q_proj" in error.message
        assert error.exit_code == 4

    def test_more_layers_than_the_base_has(self, repo: Any, base: Path, tmp_path: Path) -> None:
        repo.commit("base", identity=base)
        deep = write_adapter(tmp_path / "deep", layers=3)
        error = refused(repo, rblstore.ConflictError, "wrong_base", behaviors={"deep": deep})
        assert "layers.2" in error.message

    def test_what_another_behavior_stands_on_stays(self, repo: Any, base: Path, tmp_path: Path) -> None:
        repo.commit("base", identity=base)
        edited = {"base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight": values(WIDTH, WIDTH, seed=77)}
        repo.commit("edits", behaviors={"lower": write_adapter(tmp_path / "lower", extra=edited)})
        repo.commit("on top", behaviors={"upper": write_adapter(tmp_path / "upper", seed=2)})
        for options in (
            {"remove": ["lower"]},
            {"behaviors": {"lower": write_adapter(tmp_path / "other", seed=3)}},
        ):
            error = refused(repo, rblstore.ConflictError, "stands_on", **options)
            assert "'upper'" in error.message
            assert "'lower'" in error.message
        assert repo.commit("both", remove=["lower", "upper"]).slots == ()

    def test_another_identity_keeps_what_stands_on_unchanged_tensors(
        self, repo: Any, base: Path, tmp_path: Path
    ) -> None:
        q = write_adapter(tmp_path / "q", parts=("q",))
        v = write_adapter(tmp_path / "v", parts=("v",), seed=2)
        repo.commit("base", identity=base, behaviors={"q": q, "v": v})
        changed = {"model__layers__1__self_attn__v_proj__weight": values(WIDTH, WIDTH, seed=99)}
        # ``self_attn`` has one underscore and the separators two.
        tuned = write_base(tmp_path / "tuned", **changed)
        error = refused(repo, rblstore.ConflictError, "wrong_base", identity=tuned)
        assert "'v'" in error.message
        assert "model.layers.1.self_attn.v_proj.weight" in error.message
        assert "'q'" not in error.message
        result = repo.commit("tuned, without v", identity=tuned, remove=["v"])
        assert [slot.name for slot in result.slots] == ["q"]

    def test_a_weight_on_what_replaces(self, repo: Any, base: Path, tmp_path: Path) -> None:
        edited = {"base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight": values(WIDTH, WIDTH, seed=77)}
        repo.commit("edits", identity=base, behaviors={"e": write_adapter(tmp_path / "e", extra=edited)})
        refused(repo, rblstore.UsageError, "weight_refused", weights={"e": 0.5})

    def test_what_peft_cannot_attach_together(self, repo: Any, base: Path, tmp_path: Path) -> None:
        repo.commit("base", identity=base)
        both = {
            name: write_adapter(tmp_path / name, seed=at, bias="lora_only") for at, name in enumerate("ab", start=1)
        }
        error = refused(repo, rblstore.ConflictError, "unloadable", behaviors=both)
        assert "'a'" in error.message
        assert "'b'" in error.message
        assert "--unloadable" in error.hint
        assert len(repo.commit("both", behaviors=both, unloadable=True).slots) == 2


class TestNamedBase:
    def test_an_adapter_that_names_another_directory(self, repo: Any, base: Path, tmp_path: Path) -> None:
        write_base(tmp_path / "tuned", seed=4)
        adapter = write_adapter(tmp_path / "a", base_model_name_or_path=str(tmp_path / "tuned"))
        repo.commit("base", identity=base)
        error = refused(repo, rblstore.ConflictError, "wrong_base", behaviors={"a": adapter})
        assert "model.layers.0.self_attn.q_proj.weight" in error.message
        assert "--rebind" in error.hint
        assert repo.commit("a", behaviors={"a": adapter}, rebind=True).slots[0].name == "a"

    def test_only_tensors_that_it_acts_on_count(self, repo: Any, base: Path, tmp_path: Path) -> None:
        write_base(tmp_path / "tuned", model__norm__weight=values(WIDTH, seed=5))
        adapter = write_adapter(tmp_path / "a", base_model_name_or_path=str(tmp_path / "tuned"))
        repo.commit("base", identity=base)
        repo.commit("a", behaviors={"a": adapter})

    def test_a_name_that_leads_nowhere_decides_nothing(self, repo: Any, base: Path, tmp_path: Path) -> None:
        repo.commit("base", identity=base)
        (tmp_path / "notes").mkdir()
        for at, named in enumerate(("org/model", str(tmp_path / "gone"), str(tmp_path / "notes"), "")):
            adapter = write_adapter(tmp_path / f"a{at}", seed=at, base_model_name_or_path=named)
            repo.commit("a", behaviors={f"a{at}": adapter})

    def test_a_name_of_another_identity_of_this_repository(self, repo: Any, tmp_path: Path) -> None:
        repo.commit("one", identity=write_base(tmp_path / "one" / "small"))
        repo.commit("two", identity=write_base(tmp_path / "two" / "large", seed=5), branch="two")
        adapter = write_adapter(tmp_path / "adapters" / "a", base_model_name_or_path="org/large")
        error = refused(repo, rblstore.ConflictError, "wrong_base", behaviors={"a": adapter})
        assert "another identity of this repository" in error.message
        repo.commit("a", behaviors={"a": adapter}, branch="two")
