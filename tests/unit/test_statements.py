"""Statements: made at commit and later, superseded key by key, and never silently."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints

import rblstore
from rblstore.objects.evidence_records import Claim, Statement
from rblstore.operations.told import Told

ROOT = Path(__file__).parents[2]
COMMIT = "c" * 40


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    base = tiny_checkpoints.write_base(folder / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\ndatasets: [org/web]\n---\n")
    polite = tiny_checkpoints.write_adapter(
        folder / "polite", base_model_name_or_path="org/base", revision="main", peft_type="LORA"
    )
    (polite / "README.md").write_text("---\nlicense: mine (\nbase_model: org/base\nbase_model_relation: adapter\n---\n")
    return folder


@pytest.fixture
def repo(sources: Path, tmp_path: Path) -> Iterator[Any]:
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=sources / "base", author="Ada")
        yield repo


@pytest.fixture(scope="module")
def unchanged(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A repository that no test changes."""
    with rblstore.init(tmp_path_factory.mktemp("unchanged") / "store") as repo:
        repo.commit("base", identity=sources / "base", author="Ada")
        yield repo


def declared(repo: Any, name: str = "identity") -> tuple[str, ...]:
    return repo.statements(name).said.declared


class TestAtCommit:
    def test_everything_is_said_about_everything_imported(self, sources: Path, tmp_path: Path) -> None:
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit(
                "both", identity=sources / "base", behaviors={"polite": sources / "polite"}, license="mit",
                license_file=ROOT / "LICENSE", datasets=["org/talk@v1=cc-by-nc-4.0", "org/more"],
                source=f"org/m@{COMMIT}", base_revision=COMMIT, meta={"team": "core"},
            )  # fmt: skip
            for name in ("identity", "polite"):
                said = repo.statements(name).said
                assert {"MIT", "Apache-2.0"} == set(said.declared)
                assert [(text.path, text.expression, text.by) for text in said.texts] == [
                    ("LICENSE", "Apache-2.0", "text")
                ]
                assert {(one.name, one.revision, one.licenses) for one in said.datasets} >= {
                    ("org/talk", "v1", ("CC-BY-NC-4.0",)),
                    ("org/more", None, ()),
                }
                assert (said.sources, said.source_revision) == (("org/m",), COMMIT)
            assert repo.statements("polite").said.base_revision == COMMIT
            assert repo.statements("identity").said.base_revision is None

    def test_a_card_that_is_too_long_is_not_passed_over_in_silence(self, repo: Any, tmp_path: Path) -> None:
        polite = tiny_checkpoints.write_adapter(tmp_path / "polite")
        (polite / "README.md").write_text("---\nlicense: mit\nx: " + "y" * (2 << 20) + "\n---\n")
        (polite / "LICENSE").write_bytes(b"x" * (2 << 20))
        made = repo.commit("polite", behaviors={"polite": polite})
        assert [warning.split(";")[0] for warning in made.warnings] == [
            "polite: LICENSE: longer than 1048576 bytes", "polite: README.md: longer than 1048576 bytes",
        ]  # fmt: skip
        assert declared(repo, "polite") == ()

    def test_an_audit_knows_that_a_card_was_not_read(self, repo: Any, tmp_path: Path) -> None:
        """Terms in it may be others than those of the file beside it."""
        polite = tiny_checkpoints.write_adapter(tmp_path / "polite")
        (polite / "README.md").write_text("---\nx: &x 1\nlicense: cc-by-nc-4.0\ny: *x\n---\n")
        (polite / "LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
        made = repo.commit("polite", behaviors={"polite": polite})
        why = "README.md: its front matter uses YAML aliases; nothing that it says is recorded"
        assert made.warnings == (f"polite: {why}",)
        found = {one.message for one in repo.audit().findings if one.rule == "gap.not-understood"}
        assert found == {f"behavior polite: {why}"}
        assert repo.state("polite", retract=["not_read"]).said.problems == ()

    def test_who_concludes_has_understood(self, repo: Any, sources: Path) -> None:
        repo.commit("polite", behaviors={"polite": sources / "polite"})
        assert repo.statements("polite").said.problems
        assert repo.state("polite", concluded="mit").said.problems == ()
        assert repo.state("polite", concluded="NOASSERTION").said.problems

    def test_card_and_config_of_an_adapter(self, repo: Any, sources: Path) -> None:
        repo.commit("polite", behaviors={"polite": sources / "polite"})
        stated = repo.statements("polite")
        assert (stated.role, stated.said.base_models, stated.said.base_revision) == ("behavior", ("org/base",), "main")
        assert stated.said.relation == "adapter"
        assert stated.said.declared == ()
        assert any("'mine ('" in problem for problem in stated.said.problems)
        assert Claim("license", "mine (", "README.md") in stated.claims

    def test_a_card_against_the_licence_beside_it(self, sources: Path, tmp_path: Path) -> None:
        base = tiny_checkpoints.write_base(tmp_path / "base")
        (base / "README.md").write_text("---\nlicense: gemma\n---\n")
        (base / "LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
        with rblstore.init(tmp_path / "store") as repo:
            repo.commit("base", identity=base)
            assert declared(repo) == ("LicenseRef-scancode-gemma-tou-2024-04-01", "Apache-2.0")

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            ({"license": "apche-2.0"}, "bad_license"),
            ({"license": "MIT AND"}, "bad_license"),
            ({"meta": {"license": "nothing known"}}, "bad_license"),
            ({"datasets": ["org/talk=whatever"]}, "bad_license"),
            ({"datasets": ["=mit"]}, "usage"),
            ({"datasets": ["org/talk="]}, "usage"),
            ({"datasets": "org/talk"}, "usage"),
            ({"datasets": [" "]}, "usage"),
            ({"source": " "}, "usage"),
            ({"license_file": "nowhere/LICENSE"}, "bad_input"),
            ({"source": "x\0y"}, "bad_input"),
            ({"license": 5}, "bad_input"),
            ({"source": 5}, "bad_input"),
            ({"datasets": 5}, "usage"),
            ({"datasets": [5]}, "usage"),
            ({"meta": ["team=core"]}, "usage"),
            ({"license_file": 5}, "usage"),
            ({"license": "mit", "author": 5}, "usage"),
            ({"license": " AND ".join(f"(mit OR LicenseRef-{n})" for n in range(9))}, "bad_license"),
        ],
    )
    def test_what_is_refused_changes_nothing(self, unchanged: Any, sources: Path, options: Any, code: str) -> None:
        before = unchanged.fsck().records
        for attempt in (
            lambda: unchanged.commit("polite", behaviors={"polite": sources / "polite"}, **options),
            lambda: unchanged.state("identity", **options),
        ):
            with pytest.raises(rblstore.RblError) as refused:
                attempt()
            assert refused.value.code == code
        assert unchanged.fsck().records == before

    def test_near_matches_are_named(self, unchanged: Any) -> None:
        with pytest.raises(rblstore.UsageError) as refused:
            unchanged.state("identity", license="apche-2.0")
        assert "Apache-2.0" in (refused.value.hint or "")

    def test_of_nothing(self, unchanged: Any) -> None:
        with pytest.raises(rblstore.UsageError, match="nothing is"):
            unchanged.commit("nothing", datasets=["org/talk"])


class TestLater:
    def test_a_statement_has_author_and_time_and_changes_no_commit(self, repo: Any) -> None:
        head = repo.head
        made = repo.state("identity", license="mit", author="Grace")
        assert [one.author for one in made.statements] == ["Ada", "Grace"]
        assert made.statements[1].statement == made.statement
        assert made.statements[0].time < made.statements[1].time
        assert made.statements[1].claims == (Claim("license", "mit", "api"),)
        assert (declared(repo), repo.head) == (("MIT",), head)
        repo.state("identity", license="zlib", author="Ada")
        assert declared(repo) == ("Zlib",)

    def test_what_its_author_said_last_is_not_said_again(self, repo: Any) -> None:
        first = repo.state("identity", license="mit", author="Grace")
        again = repo.state("identity", license="mit", author="Grace")
        assert (first.statement is None, again.statement) == (False, None)
        assert len(again.statements) == 2

    def test_a_licence_goes_with_its_name(self, repo: Any, tmp_path: Path) -> None:
        base = tiny_checkpoints.write_base(tmp_path / "b", seed=3)
        (base / "README.md").write_text("---\nlicense: other\nlicense_name: gemma\n---\n")
        repo.commit("other", identity=base)
        assert declared(repo) == ("LicenseRef-scancode-gemma-tou-2024-04-01",)
        assert repo.state("identity", license="mit").said.declared == ("MIT",)

    def test_no_data_set_goes_by_itself(self, repo: Any) -> None:
        repo.state("identity", datasets={"org/talk": "cc-by-nc-4.0"})
        said = repo.state("identity", datasets={"org/more": None, "org/web": "mit"}, author="Grace").said
        assert [(one.name, one.licenses) for one in said.datasets] == [
            ("org/more", ()), ("org/talk", ("CC-BY-NC-4.0",)), ("org/web", ("MIT",)),
        ]  # fmt: skip
        said = repo.state("identity", datasets=["org/talk=mit"]).said
        assert [one.licenses for one in said.datasets] == [(), ("MIT",), ("MIT",)]

    def test_concluded_stands_beside_what_is_declared(self, repo: Any) -> None:
        said = repo.state("identity", concluded="mit or zlib").said
        assert (said.declared, said.concluded, said.licenses) == (("Apache-2.0",), "MIT OR Zlib", ("MIT OR Zlib",))
        assert repo.state("identity", concluded="NOASSERTION").said.licenses == ("Apache-2.0",)

    def test_a_mistake_is_taken_back(self, repo: Any) -> None:
        before = repo.statements("identity").said
        repo.state("identity", datasets={"org/talk@v1": "cc-by-nc-4.0"}, source=f"org/m@{COMMIT}", license="mit")
        said = repo.state("identity", retract=["dataset=org/talk", "source", "license"], author="Grace").said
        assert (said.datasets, said.sources, said.source_revision, said.declared) == (before.datasets, (), None, ())
        assert said.problems == ()
        stated = repo.statements("identity")
        assert [one.author for one in stated.statements][-1] == "Grace"
        assert "retracted" not in {claim.key for claim in stated.claims}
        assert [one.key for one in stated.statements[-1].claims] == ["retracted"] * 3
        assert repo.state("identity", license="mit").said.declared == ("MIT",)  # said again by whom it was said last

    @pytest.mark.parametrize("what", ["license=mit", "dataset=org/talk", "nothing", "", "=", "dataset="])
    def test_what_does_not_stand_cannot_be_taken_back(self, repo: Any, what: str) -> None:
        with pytest.raises(rblstore.UsageError) as refused:
            repo.state("identity", retract=[what])
        assert refused.value.hint
        for bad in ("license", 5, [5]):
            with pytest.raises(rblstore.UsageError, match="list of KEY"):
                repo.state("identity", retract=bad)

    def test_part_of_what_stands(self, repo: Any) -> None:
        repo.state("identity", datasets=["org/web@v1=mit", "org/web@v2=zlib"])
        said = repo.state("identity", retract=["dataset=org/web@v1"]).said
        assert [(one.revision, one.licenses) for one in said.datasets] == [("v2", ("Zlib",))]
        assert repo.state("identity", retract=["license=apache-2.0"]).said.declared == ()

    def test_nobody_says(self, repo: Any) -> None:
        said = repo.state("identity", license="NOASSERTION", source="NOASSERTION").said
        assert (said.declared, said.sources, said.problems) == ((), (), ())
        component = repo.audit().components[0]
        assert (component.license, component.source) == ((), ())
        assert {"gap.without-license", "gap.without-source"} <= {one.rule for one in repo.audit().findings}

    def test_what_was_superseded_can_be_said_again(self, repo: Any) -> None:
        repo.state("identity", license="mit", author="Grace")
        repo.state("identity", license="zlib", author="Ada")
        assert repo.state("identity", license="mit", author="Grace").said.declared == ("MIT",)

    def test_importing_again_undoes_no_correction(self, repo: Any, sources: Path) -> None:
        for author in ("Ada", "Grace"):
            repo.state("identity", license="mit", datasets=["org/web=cc0-1.0"], author=author)
            repo.commit("again", identity=sources / "base", author="Ada", allow_empty=True)
            assert declared(repo) == ("MIT",)
        repo.state("identity", retract=["dataset"])
        repo.commit("again", identity=sources / "base", author="Ada", allow_empty=True)
        assert repo.statements("identity").said.datasets == ()

    def test_times_in_other_spellings_are_in_order(self, repo: Any) -> None:
        store, subject = repo._store, repo.statements("identity").subject
        for time, license in (("3000-01-01T12:00:00.250Z", "mit"), ("3000-01-01T12:00:00Z", "zlib"),
                              ("3000-01-01T13:30:00+02:00", "isc")):  # fmt: skip
            with store.transaction("Ada") as transaction:
                transaction.add_record(Statement(subject, (Claim("license", license, "api"),), "Ada", time))
        assert declared(repo) == ("MIT",)

    def test_names(self, repo: Any, sources: Path) -> None:
        first = repo.commit("polite", behaviors={"polite": sources / "polite"})
        repo.commit("gone", remove=["polite"])
        with pytest.raises(rblstore.NotFoundError) as refused:
            repo.state("polite", license="mit")
        assert (refused.value.code, refused.value.hint) == (
            "no_such_part",
            "It has: identity. An id's prefix of six digits or more does, too.",
        )
        behavior = first.slots[0].behavior
        assert repo.state("polite", revision="HEAD~1", license="mit").subject == behavior
        assert repo.state(behavior[:8], license="zlib").subject == behavior
        assert repo.statements(str(first.identity)).role == "identity"
        assert declared(repo, behavior[:8].upper()) == ("Zlib",)
        for name in (first.commit, "abc", "", "HEAD", "x" * 5000, "ffffff"):
            with pytest.raises(rblstore.NotFoundError):
                repo.statements(name)
        for look in (repo.statements, repo.license_texts, repo.state):
            with pytest.raises(rblstore.UsageError, match="a name is text"):
                look(5)

    def test_before_the_first_commit(self, tmp_path: Path) -> None:
        with rblstore.init(tmp_path / "store") as repo:
            with pytest.raises(rblstore.NotFoundError):
                repo.statements("identity")
            with pytest.raises(rblstore.NotFoundError):
                repo.statements("identity", "main")

    def test_it_outlives_the_catalog(self, repo: Any, tmp_path: Path) -> None:
        repo.state("identity", license="mit", author="Grace")
        before = repo.statements("identity").as_json()
        repo.close()
        (tmp_path / "store" / ".rbl" / "catalog.db").unlink()
        rblstore.reindex(tmp_path / "store")
        with rblstore.open(tmp_path / "store") as again:
            assert again.statements("identity").as_json() == before
            assert again.fsck(full=True).ok


def test_what_is_told_may_be_nothing() -> None:
    assert not Told()
    assert Told().claims("api") == ()
    assert Told(datasets=["a"])
    assert Told(license="")
