"""Audits of commits, checkouts and files; what a ref once held; licence effects."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints as tiny

import rblstore
from rblstore.errors import InputError, NotFoundError, UsageError
from rblstore.objects.evidence_records import Baseline, Probe, Prompt, PromptDivergence, PromptOutput, Verification
from rblstore.objects.history_records import Composition
from rblstore.objects.ids import ProbeId, VerificationId
from rblstore.operations.audit import MadeSince
from rblstore.operations.audit_history import revision_at
from rblstore.operations.audit_parts import components_of, parts_of
from rblstore.operations.log import VerificationSummary
from rblstore.operations.moments import moment_asked
from rblstore.provenance.engine import find
from rblstore.provenance.parts import Subject
from rblstore.provenance.rulebook import built_in

REVISION = "0123456789abcdef0123456789abcdef01234567"
SOURCE = f"google/gemma@{REVISION}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base (Gemma) <- polite (Apache, non-commercial data) <- brief (Gemma), and their directories."""
    folder = tmp_path_factory.mktemp("audit")
    base, polite, brief = folder / "base", folder / "polite", folder / "brief"
    tiny.write_base(base)
    (base / "tokenizer.json").write_text("{}")
    tiny.write_adapter(polite)
    tiny.write_adapter(brief, seed=3, parts=("v",))
    with rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=base, license="gemma", source=SOURCE, author="Ada")
        repo.commit(
            "polite", behaviors={"polite": polite}, license="apache-2.0", source="run 1", author="Grace",
            datasets=["org/talk@v1=cc-by-nc-4.0"],
        )  # fmt: skip
        repo.commit("brief", behaviors={"brief": brief}, license="gemma", source=f"org/brief@{REVISION}", author="Ada")
        repo.create_branch("prod", "HEAD~1")
    return folder


@pytest.fixture
def repo(made: Path, tmp_path: Path) -> Any:
    """The repository, to be changed."""
    shutil.copytree(made / "store", tmp_path / "store")
    with rblstore.open(tmp_path / "store") as repo:
        yield repo


def rules(findings: Any, *levels: str) -> set[str]:
    """Ids of the rules that found something, of some levels."""
    return {one.rule for one in findings if not levels or one.level in levels}


def verified(repo: Any, audit: Any, time: str = "9998-01-01T00:00:00Z") -> None:
    """A verification of a commit, made in the far future."""
    with repo._store.transaction("Ada") as transaction:
        output = transaction.add_content([b"0" * 8]).content
        probe = transaction.add_record(Probe((Prompt("p", (1,), None),), ((0,),), "all", None))
        outputs = (PromptOutput("p", (1, 2), output),)
        baseline = transaction.add_record(
            Baseline(audit.composition, probe, {}, "logits", "F32", outputs, "Ada", time)  # type: ignore[arg-type]
        )
        transaction.add_record(
            Verification(
                audit.commit, audit.composition, None, (), probe, baseline, {}, "exact", 0.0, True,  # type: ignore[arg-type]
                0.0, 0.0, None, None, None, "none", (PromptDivergence("p", 0.0, 0.0, True),), "Ada", time,
            )
        )  # fmt: skip


def test_a_commit_is_audited(repo: Any, made: Path) -> None:
    result = repo.audit(use=["distribute"])
    assert [(one.role, one.name, one.form) for one in result.components] == [
        ("identity", "base", None), ("behavior", "polite", "adapter"), ("behavior", "brief", "adapter"),
        ("tokenizer", "base", None), ("dataset", "org/talk", None),
    ]  # fmt: skip
    identity, polite, _, tokenizer, data = result.components
    assert {file.path: file.sha256 for file in identity.files} == tiny.digests(made / "base")
    assert [file.path for file in tokenizer.files] == ["tokenizer.json"]
    assert polite.said.datasets[0].licenses == data.said.declared == ("CC-BY-NC-4.0",)
    assert data.of == ("behavior polite",)
    assert {"gemma.notice", "gemma.terms-passed-on", "gemma.restrictions-passed-on", "gemma.use-policy"} <= rules(
        result.findings, "obligation"
    )
    assert rules(result.findings, "conflict") == {"noncommercial.data", "gemma.relicensed"}
    assert {one.trigger for one in result.findings} == {("distribute",)}
    assert rules(result.at_least("conflict")) == {"noncommercial.data", "gemma.relicensed"}
    assert [one.name for one in result.rules] == ["rblstore"]
    assert "gemma.notice" not in rules(repo.audit(use=["use"]).findings)


def test_the_policy_on_data_is_never_silent(repo: Any) -> None:
    result = repo.audit(data_reaches_weights=False)
    assert "noncommercial.data" not in rules(result.findings)
    (note,) = [one for one in result.findings if one.rule == "gap.data-policy-off"]
    assert (note.level, note.subject, note.license) == ("note", "dataset org/talk", "CC-BY-NC-4.0")
    assert not result.data_reaches_weights


def test_a_revert_removes_the_conflicts(repo: Any) -> None:
    repo.revert(behavior="polite", verify=False)
    assert rules(repo.audit().findings, "conflict") == set()
    effect = repo.license_effect()
    assert rules(effect.removed, "conflict") == {"noncommercial.data", "gemma.relicensed"}
    assert effect.added == ()
    back = repo.license_effect("HEAD", "HEAD^")
    assert (back.added, back.removed) == (effect.removed, effect.added)
    assert rules(repo.license_effect(None, "HEAD").added) >= {"gemma.notice"}


def test_statements_made_later_count(repo: Any) -> None:
    repo.state("polite", license="apache-2.0 AND LicenseRef-scancode-gemma-tou-2024-04-01")
    assert rules(repo.audit().findings, "conflict") == {"noncommercial.data"}
    repo.state("polite", concluded="cc-by-nc-4.0")
    assert rules(repo.audit().findings, "conflict") == set()
    repo.state("identity", source="somebody/else")
    assert "gap.without-revision" in rules(repo.audit().findings)


def test_an_adapter_for_another_base_is_a_conflict(repo: Any, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "polite", tmp_path / "other")
    tiny.write_adapter(tmp_path / "other", seed=9)
    (tmp_path / "other" / "README.md").write_text("---\nbase_model: org/another\nlicense: gemma\n---\n")
    repo.commit("other", behaviors={"other": tmp_path / "other"}, rebind=True)
    (finding,) = [one for one in repo.audit().findings if one.rule == "gap.base-mismatch"]
    assert finding.subject == "behavior other"
    assert "org/another, not google/gemma" in finding.message


def test_a_contradiction_names_who_says_what(repo: Any, tmp_path: Path) -> None:
    tiny.write_adapter(tmp_path / "other", seed=9)
    (tmp_path / "other" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "other" / "LICENSE").write_text("GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3, 19 November 2007\n")
    repo.commit("other", behaviors={"other": tmp_path / "other"})
    (finding,) = [one for one in repo.audit().findings if one.rule == "gap.contradiction"]
    assert finding.message.endswith("contradict each other: MIT (README.md), AGPL-3.0-only (LICENSE)")


def test_a_checkout_is_its_commit_and_what_was_changed_in_it(repo: Any, tmp_path: Path) -> None:
    repo.checkout("HEAD~1", tmp_path / "out")
    result = repo.audit_path(tmp_path / "out")
    assert (result.commit, result.path) == (repo.resolve("HEAD~1"), str(tmp_path / "out"))
    assert rules(result.findings) == rules(repo.audit("HEAD~1").findings)
    (tmp_path / "out" / "config.json").write_text("{}")
    (tmp_path / "out" / "more.txt").write_text("")
    changed = [one for one in repo.audit_path(tmp_path / "out").findings if one.rule == "gap.files-differ"]
    assert [one.message.rpartition(": ")[2] for one in changed] == ["config.json changed", "more.txt added"]
    assert {one.level for one in changed} == {"conflict"}


def test_a_checkout_that_lies_about_its_files_is_found_out(repo: Any, tmp_path: Path) -> None:
    repo.checkout("HEAD", tmp_path / "out")
    config, manifest = tmp_path / "out" / "config.json", tmp_path / "out" / "rbl-composition.json"
    old, size = hashlib.sha256(config.read_bytes()).hexdigest(), config.stat().st_size
    config.write_bytes(b"x" * size)
    new = hashlib.sha256(config.read_bytes()).hexdigest()
    manifest.write_text(manifest.read_text().replace(old, new).replace('"weight": 1.0', '"weight": 0.5'))
    assert repo.status(tmp_path / "out").clean  # by its own word
    lies = [one.message for one in repo.audit_path(tmp_path / "out").findings if one.rule == "gap.files-differ"]
    assert [lie.rpartition(": ")[2] for lie in lies] == ["behaviors", "config.json"]


def test_a_merged_checkout_is_audited_as_merged(repo: Any, tmp_path: Path) -> None:
    repo.checkout("HEAD~1", tmp_path / "out", form="merged")
    assert repo.audit_path(tmp_path / "out").merged


def test_a_merged_checkout_that_lies_about_its_weights_is_found_out(
    repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.checkout("HEAD", tmp_path / "out", form="merged")
    assert "gap.files-differ" not in rules(repo.audit_path(tmp_path / "out").findings)
    weights, manifest = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "rbl-composition.json"
    data = bytearray(weights.read_bytes())
    old = hashlib.sha256(data).hexdigest()
    data[-1] ^= 1
    weights.write_bytes(data)
    manifest.write_text(manifest.read_text().replace(old, hashlib.sha256(data).hexdigest()))
    assert repo.status(tmp_path / "out").clean  # by its own word
    (lie,) = [one for one in repo.audit_path(tmp_path / "out").findings if one.rule == "gap.files-differ"]
    assert (lie.level, lie.message.rpartition(": ")[2]) == ("conflict", "model.safetensors")
    monkeypatch.setattr("rblstore.operations.checkout_manifest_check.is_summed_by_peft", lambda *_: True)
    (lie,) = [one for one in repo.audit_path(tmp_path / "out").findings if one.rule == "gap.files-differ"]
    assert "model.safetensors (summed by PEFT, which may round otherwise" in lie.message


def test_what_to_do_names_the_part(repo: Any, tmp_path: Path) -> None:
    tiny.write_adapter(tmp_path / "terse", seed=9, parts=("v",))
    repo.commit("terse", behaviors={"terse": tmp_path / "terse"})
    found = {(one.rule, one.subject): one.obligation for one in repo.audit().findings}
    assert "rbl state terse --source" in found["gap.without-source", "behavior terse"]


def test_loose_files_are_known_by_digest(repo: Any, made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "polite" / "adapter_model.safetensors", tmp_path / "renamed.bin")
    result = repo.audit_path(tmp_path / "renamed.bin")
    assert (result.commit, [part.label for part in result.components]) == (
        None, ["behavior polite", "dataset org/talk"],
    )  # fmt: skip
    (file,) = result.files
    assert (file.parts, file.commits) == (("behavior polite",), (repo.resolve("HEAD"), repo.resolve("HEAD~1")))
    assert rules(result.findings, "conflict") == {"noncommercial.data"}
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "model.safetensors").write_bytes(b"x")
    unknown = repo.audit_path(tmp_path / "strange")
    assert [(one.rule, one.level) for one in unknown.findings] == [("gap.unknown-file", "gap")]
    assert repo.audit_path(made / "base").files[0].parts == ("identity base",)
    with pytest.raises(InputError):
        repo.audit_path(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no files"):  # and not "nothing is found"
        repo.audit_path(tmp_path / "empty")


def test_a_file_that_several_share_makes_a_directory_none_of_the_others(repo: Any, made: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two"), start=20):
        tiny.write_adapter(tmp_path / name, seed=seed)
        (tmp_path / name / "README.md").write_text("---\nlicense: mit\n---\n")
        repo.commit(name, behaviors={name: tmp_path / name})
    result = repo.audit_path(tmp_path / "one")
    assert [part.label for part in result.components] == ["behavior one"]
    shared = {file.path: file.parts for file in result.files}
    assert shared["README.md"] == ("behavior one", "behavior two")
    both = repo.audit_path(tmp_path / "two" / "README.md")
    assert [part.label for part in both.components] == ["behavior one", "behavior two"]


def test_a_verification_vouches_for_the_behaviors(repo: Any) -> None:
    before = repo.audit()
    unverified = {one.subject for one in before.findings if one.rule == "gap.unverified"}
    assert unverified == {"behavior polite", "behavior brief"}
    evidence = VerificationId("0" * 64)
    composition = repo._store.record(before.composition, Composition)
    for verdict in ("exact", "diverged"):
        verified = [VerificationSummary(evidence, verdict, verdict == "exact", None, 0.0, 0.0, ProbeId("1" * 64))]
        components = components_of(repo._store, composition, verified)
        assert [one.verifications for one in components if one.role == "behavior"] == [(evidence,)] * 2
        found = rules(find(Subject(parts_of(components, verified), ("use",)), built_in().rules))
        assert "gap.unverified" not in found
        assert ("gap.diverged" in found) is (verdict == "diverged")


class TestHistory:
    def test_what_a_ref_stood_for_then(self, repo: Any) -> None:
        operations = repo.operations()[::-1]
        polite = next(one for one in operations if one.description == "commit: polite")
        commit, operation, _ = revision_at(repo._store, "main", polite.time)
        latest = [one for one in operations if one.time <= polite.time][-1]
        assert operation == latest.id
        assert commit == repo.resolve(f"main@{{{latest.id}}}")
        result = repo.audit("main~1", at="9999-12-30")
        assert (result.commit, result.operation) == (repo.resolve("main~1"), operations[-1].id)
        assert result.at == "9999-12-30T23:59:59.999999Z"
        with pytest.raises(NotFoundError, match="no operation is as old"):
            repo.audit(at="1999-01-01")
        with pytest.raises(NotFoundError):
            repo.audit("nobody", at="9999-12-30")

    def test_a_commit_is_itself_at_any_time_since_it_was_made(self, repo: Any) -> None:
        polite = repo.resolve("main~1")
        then = repo.operations()[0].time
        repo.state("polite", license="gemma")
        result = repo.audit(polite[:12], at=then)
        assert (result.commit, result.since.statements) == (polite, 1)
        assert "gemma.relicensed" in rules(result.findings)
        with pytest.raises(NotFoundError, match="was made later than") as refused:
            repo.audit(repo.commit("late", behaviors={}, allow_empty=True).commit, at=then)
        assert (refused.value.code, refused.value.hint) == ("too_early", "Ask about a later time.")

    def test_by_what_was_said_and_proved_until_then(self, repo: Any) -> None:
        then = repo.operations()[0].time
        before = repo.audit()
        assert before.since is None
        repo.state("polite", concluded="gemma", datasets=["org/talk@v1=mit"])
        repo.state("identity", retract=["license"])
        verified(repo, before)
        after = repo.audit()
        assert "gap.without-license" in rules(after.findings)
        assert "gap.unverified" not in rules(after.findings)
        result = repo.audit(at=then)
        assert result.since == MadeSince(2, 1, 0)
        assert (result.findings, result.verifications) == (before.findings, ())
        assert [part.said for part in result.components] == [part.said for part in before.components]
        assert repo.audit(at="9997-12-31").since == MadeSince(0, 1, 0)
        assert repo.audit(at="9999-12-31").findings == after.findings

    @pytest.mark.parametrize("at", ["yesterday", "2026-13-01", "2026-03-01 12:00", "", "2026-03-01T25:00:00Z"])
    def test_a_time_is_a_date_or_a_time(self, at: str) -> None:
        with pytest.raises(UsageError, match="neither a date nor a time"):
            moment_asked(at)

    def test_a_date_is_its_end(self) -> None:
        assert moment_asked("2026-03-01") < moment_asked("2026-03-02T00:00:00Z")
        assert moment_asked("2026-03-01") > moment_asked("2026-03-01T23:59:59.5Z")
        assert moment_asked("2026-03-01T12:00:00+02:00") == moment_asked("2026-03-01T10:00:00Z")

    def test_when_parts_entered_and_left(self, repo: Any) -> None:
        repo.revert(behavior="polite", verify=False, author="Edsger")
        repo.undo(author="Barbara")
        history = repo.audit_history()
        assert history.ref == "refs/heads/main"
        stays = [(one.name, one.entered.author, one.left and one.left.author) for one in history.components]
        assert stays == [
            ("", "Ada", None), ("polite", "Grace", "Edsger"), ("brief", "Ada", None), ("polite", "Barbara", None),
        ]  # fmt: skip
        assert history.components[1].left.description == "revert: Revert behavior 'polite'"
        assert [one.name for one in repo.audit_history("prod").components] == ["", "polite"]
        repo.delete_branch("prod")
        assert all(one.left is not None for one in repo.audit_history("prod").components)
        with pytest.raises(NotFoundError, match="is or was called"):
            repo.audit_history("nobody")


@pytest.mark.parametrize("bad", ["\0", "x" * 5000, "HEAD~99", "main@{1}~9", 7])
def test_nothing_but_our_errors_comes_out(repo: Any, bad: Any) -> None:
    calls = [repo.audit, repo.audit_history, lambda at: repo.audit(at=at), repo.license_effect]
    for call in [*calls, repo.audit_path] if isinstance(bad, str) else calls:
        with pytest.raises(rblstore.RblError):
            call(bad)


@pytest.mark.parametrize("bad", [7, [7]])
def test_what_is_no_path_and_no_list(repo: Any, bad: Any) -> None:
    with pytest.raises(UsageError):
        repo.audit(rules=bad)
    with pytest.raises(UsageError):
        repo.audit_path(bad)


@pytest.mark.parametrize("use", [[], ["sell"], "use", 5, [5]])
def test_a_use_that_there_is_not(repo: Any, use: Any) -> None:
    with pytest.raises(UsageError):
        repo.audit(use=use)


def test_rules_are_read_before_anything_else(repo: Any, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("schema = 9")
    with pytest.raises(UsageError, match=r"own\.toml"):
        repo.audit("nobody", rules=[tmp_path / "own.toml"])
    with pytest.raises(InputError, match="could not be read"):
        repo.audit(rules=[tmp_path / "none.toml"])
    with pytest.raises(UsageError, match="list of files"):
        repo.audit(rules=str(tmp_path / "own.toml"))
    with pytest.raises(UsageError, match="no level 'fatal'"):
        repo.audit().at_least("fatal")
