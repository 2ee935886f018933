"""What claims come to: licences side by side, data one by one, what could not be understood, and bases that differ."""

from __future__ import annotations

import pytest

from rblstore.objects.evidence_records import Claim
from rblstore.provenance.base_mismatch import BaseMismatch, base_mismatch
from rblstore.provenance.said import DatasetSaid, LicenseText, Said, said, split_revision

SHA = "ab" * 32
ONE, OTHER = "1" * 40, "2" * 40
CARD, FILE, API, LINE, RUN = "README.md", "LICENSE", "api", "command line", "training run"


def of(*claims: tuple[str, str, str]) -> Said:
    return said([Claim(*claim) for claim in claims])


def text(path: str, known: str = "") -> tuple[str, str, str]:
    return ("license_file", f"{path} sha256:{SHA}{known}", path)


def test_nothing() -> None:
    assert said([]) == Said()
    assert Said().licenses == ()


def test_who_declares_what_is_known() -> None:
    text = "LICENSE sha256:" + "a" * 64 + " AGPL-3.0-only by title"
    found = of(("license", "mit", "README.md"), ("license", "MIT", API), ("license_file", text, "LICENSE"))
    assert found.declared_by == {"MIT": (API, "README.md"), "AGPL-3.0-only": ("LICENSE",)}


class TestLicenses:
    def test_one_licence_in_two_spellings_is_one(self) -> None:
        found = of(("license", "apache-2.0", CARD), ("license", "Apache-2.0", API), text(FILE, " Apache-2.0 by text"))
        assert (found.declared, found.problems) == (("Apache-2.0",), ())
        assert found.texts == (LicenseText(FILE, SHA, "Apache-2.0", "text"),)

    def test_card_against_file_are_two_declarations(self) -> None:
        found = of(("license", "apache-2.0", CARD), text(FILE, " MIT by text"))
        assert (found.declared, found.licenses) == (("Apache-2.0", "MIT"), ("Apache-2.0", "MIT"))

    def test_card_against_person(self) -> None:
        assert of(("license", "mit", CARD), ("license", "gemma", LINE)).declared == (
            "LicenseRef-scancode-gemma-tou-2024-04-01",
            "MIT",
        )

    @pytest.mark.parametrize(
        ("card", "file", "declared"),
        [
            ("mit or apache-2.0", "MIT", ("Apache-2.0 OR MIT",)),
            ("gpl-3.0+", "GPL-3.0-only", ("GPL-3.0-or-later",)),
            ("bsd", "BSD-3-Clause", ("BSD-3-Clause",)),
            ("cc", "CC-BY-NC-4.0", ("CC-BY-NC-4.0",)),
            ("bsd", "MIT", ("LicenseRef-rbl-bsd", "MIT")),
        ],
    )
    def test_a_text_that_is_one_of_those_declared(self, card: str, file: str, declared: tuple[str, ...]) -> None:
        assert of(("license", card, CARD), text(FILE, f" {file} by text")).declared == declared

    def test_other_has_a_name(self) -> None:
        named = of(("license", "other", CARD), ("license_name", "gemma", CARD))
        assert named.declared == ("LicenseRef-scancode-gemma-tou-2024-04-01",)
        own = (("license", "other", CARD), ("license_name", "My Own", CARD))
        assert of(*own).declared == ("LicenseRef-rbl-my-own",)
        assert of(*own, text(FILE)).declared == (f"LicenseRef-rbl-{SHA}",)
        assert of(("license", "mit", CARD), ("license_name", "gemma", CARD)).declared == ("MIT",)

    def test_other_without_a_name_is_not_understood(self) -> None:
        found = of(("license", "other", CARD))
        assert (found.declared, found.problems) == ((), ("a licence is spoken of, and not which",))
        assert of(("license", "other", CARD), text(FILE)).declared == (f"LicenseRef-rbl-{SHA}",)

    def test_what_does_not_parse_is_a_problem_with_its_origin(self) -> None:
        found = of(("license", "MIT AND (", CARD))
        assert found.declared == ()
        assert found.problems[0].startswith("README.md: licence: 'MIT AND ('")

    def test_a_list_says_neither_and_nor_or(self) -> None:
        found = of(("license", "mit", CARD), ("license", "zlib", CARD))
        assert found.declared == ("MIT", "Zlib")
        assert found.problems == ("README.md: several licences, and not whether all of them hold or any",)

    def test_an_unknown_text_beside_a_card(self) -> None:
        found = of(("license", "mit", CARD), text(FILE))
        assert found.declared == ("MIT",)
        assert found.problems == ("LICENSE: a text that is not known; whether it is MIT is not known either",)

    def test_a_title_over_another_text(self) -> None:
        assert of(text(FILE, " Apache-2.0 by title")).problems == (
            "LICENSE: it has the title of Apache-2.0, and another text",
        )
        assert of(text(FILE, " LicenseRef-scancode-gemma-tou-2024-04-01 by title")).problems == ()

    @pytest.mark.parametrize("path", ["NOTICE", "USE_POLICY.md", "sub/LICENSE", "LICENSE-THIRD-PARTY.txt"])
    def test_texts_that_declare_nothing(self, path: str) -> None:
        found = of(text(path, " MIT by text"))
        assert (found.declared, [one.path for one in found.texts]) == ((), [path])

    def test_a_file_that_a_person_names_declares(self) -> None:
        value = f"terms.txt sha256:{SHA} MIT by text"
        assert of(("license_file", value, API)).declared == ("MIT",)
        assert of(("license_file", value, "terms.txt")).declared == ()

    def test_what_is_concluded_goes_first(self) -> None:
        declared = (("license", "mit", CARD), ("license", "zlib", API))
        assert of(*declared, ("license_concluded", "mit", API)).licenses == ("MIT",)
        none = of(*declared, ("license_concluded", "NOASSERTION", API))
        assert (none.concluded, none.licenses) == ("NOASSERTION", ("MIT", "Zlib"))

    def test_two_conclusions_are_none(self) -> None:
        found = of(("license_concluded", "mit", API), ("license_concluded", "zlib", LINE))
        assert (found.concluded, found.problems) == (None, ("several licences are concluded: MIT, Zlib",))


class TestData:
    def test_each_with_its_licences(self) -> None:
        found = of(
            ("dataset", "a/b", CARD), ("dataset", "c/d@v2", API), ("dataset_license", "c/d@v2=cc-by-nc-4.0", API),
            ("dataset_license", "a/b=mit or zlib", LINE), ("dataset_license", "a/b=mit", API),
        )  # fmt: skip
        assert found.datasets == (
            DatasetSaid("a/b", None, ("MIT", "MIT OR Zlib")),
            DatasetSaid("c/d", "v2", ("CC-BY-NC-4.0",)),
        )

    def test_a_licence_without_a_name_is_of_its_origin(self) -> None:
        found = of(("dataset", "a", CARD), ("dataset", "b", API), ("dataset_license", "cc0-1.0", API))
        assert found.datasets == (DatasetSaid("a", None, ()), DatasetSaid("b", None, ("CC0-1.0",)))
        assert of(("dataset_license", "mit", API)).problems == ("api: a licence of data, mit, and not of which",)

    def test_a_licence_alone_names_its_data_set(self) -> None:
        assert of(("dataset_license", "a=mit", API)).datasets == (DatasetSaid("a", None, ("MIT",)),)

    def test_a_licence_that_does_not_parse(self) -> None:
        found = of(("dataset", "a", CARD), ("dataset_license", "a=whatever", CARD))
        assert found.datasets == (DatasetSaid("a", None, ()),)
        assert found.problems == ("README.md: licence of a: 'whatever' is not a licence that is known",)

    def test_a_revision_says_which(self) -> None:
        found = of(("dataset", "a", CARD), ("dataset", "a@v1", API), ("dataset_license", "a=mit", API))
        assert found.datasets == (DatasetSaid("a", "v1", ("MIT",)),)


def test_where_it_comes_from() -> None:
    found = of(
        ("source", "org/m", "hub cache"), ("source_revision", ONE, "hub cache"), ("name", "m", "path"),
        ("base_model", "org/b", CARD), ("base_model", "org/b", "adapter_config.json"),
        ("base_model_relation", "adapter", CARD), ("base_revision", "main", "adapter_config.json"),
        ("base_revision", OTHER, API),
    )  # fmt: skip
    assert (found.name, found.sources, found.source_revision) == ("m", ("org/m",), ONE)
    assert (found.base_models, found.base_revision, found.relation) == (("org/b",), OTHER, "adapter")
    assert found.problems == ()
    both = of(("base_revision", ONE, CARD), ("base_revision", OTHER, API))
    assert both.base_revision == OTHER
    assert "base_revision is stated in 2 ways" in both.problems[0]


def test_revisions_behind_names() -> None:
    assert split_revision("org/m@v1") == ("org/m", "v1")
    for whole in ("org/m", "@v1", "org/m@", "a b@c", "https://x.org/a@b", "git@x.org:a/b"):
        assert split_revision(whole) == (whole, None)
    assert of(("base_model", f"org/b@{ONE}", CARD)).base_revision == ONE


def test_training_by_the_names_of_documents() -> None:
    found = of(
        ("meta.step", "12", RUN), ("meta.tokens", "99", RUN), ("meta.torch", "2.13", RUN), ("meta.seed", "3", RUN),
        ("meta.team", "core", API), ("meta.code_commit", ONE, API), ("meta.identity_before", SHA, RUN),
    )  # fmt: skip
    assert found.training == {
        "code_commit": ONE, "identity_before": SHA, "library.torch": "2.13", "seed": "3", "steps": "12", "tokens": "99",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("behavior", "identity", "expected"),
    [
        (Said(base_models=("org/a",)), Said(sources=("org/a",)), None),
        (Said(base_models=("Org/A",)), Said(sources=("https://huggingface.co/org/a",)), None),
        (Said(base_models=("org/a",)), Said(sources=("org/b",)), BaseMismatch("base", ("org/a",), ("org/b",))),
        (Said(base_models=("org/a", "org/b")), Said(sources=("org/b",)), BaseMismatch("base", ("org/a",), ("org/b",))),
        (Said(base_models=("org/a", "org/b"), relation="merge"), Said(sources=("org/b",)), None),
        (Said(base_models=("/data/a", "./a", "a", "~/a/b", "a/b/c")), Said(sources=("org/b",)), None),
        (Said(base_models=("org/a",)), Said(sources=("a run of ours",)), None),
        (Said(base_models=("org/a",)), Said(name="org/b"), None),
        (
            Said(base_models=("org/a",), base_revision=ONE),
            Said(sources=("org/a",), source_revision=OTHER),
            BaseMismatch("revision", (ONE,), (OTHER,)),
        ),
        (Said(base_models=("org/a",), base_revision="main"), Said(sources=("org/a",), source_revision=OTHER), None),
        (Said(base_models=("org/a",), base_revision=ONE), Said(sources=("org/a",), source_revision=ONE), None),
        (Said(base_revision=ONE), Said(sources=("org/a",), source_revision=OTHER), None),
    ],
)
def test_bases_that_differ(behavior: Said, identity: Said, expected: BaseMismatch | None) -> None:
    found = base_mismatch(behavior, identity)
    assert found == expected
    assert found is None or all(name in found.message for name in (*found.behavior, *found.identity))
