"""Exports: valid by their own formats' validators, saying what the records say and no more, the same every time."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import export_story
import pytest
from export_story import HOSTILE, Told

import rblstore
from rblstore.errors import NotFoundError, UsageError
from rblstore.objects.tombstone_records import Tombstone
from rblstore.operations.export import FORMATS
from rblstore.provenance.libraries import MissingLibraryError
from rblstore.provenance.markdown_text import code, plain

RECORD = re.compile(r"[0-9a-f]{64}")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story, closed."""
    folder = tmp_path_factory.mktemp("exports")
    export_story.tell(folder).repo.close()
    return folder / "store"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """The story with statements: Gemma's terms, an adapter on non-commercial data, an overlay that nobody speaks of."""
    told = export_story.tell(tmp_path_factory.mktemp("told"))
    export_story.speak(told)
    yield told
    told.repo.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Told]:
    """A story of one's own."""
    told = export_story.tell(tmp_path)
    yield told
    told.repo.close()


def export(told: Told, format: str, revision: str = "HEAD", **options: Any) -> Any:
    return told.repo.export(revision, format, **options).document


@pytest.fixture(scope="module")
def valid_cyclonedx() -> Callable[[str], Any]:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_7)

    def check(text: str) -> Any:
        assert (error := validator.validate_str(text)) is None, error
        return json.loads(text)

    return check


def properties(component: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in component["properties"]:
        found.setdefault(one["name"].removeprefix("rblstore:"), []).append(one["value"])
    return found


def test_cyclonedx_says_what_the_records_say(told: Told, valid_cyclonedx: Callable[[str], Any]) -> None:
    document = valid_cyclonedx(told.repo.export("HEAD", "cyclonedx").data.decode())
    assert document["specVersion"] == "1.7"
    assert document["metadata"]["timestamp"].startswith("2030-01-01T00:00:00")
    whole = document["metadata"]["component"]
    assert whole["version"] == told.head
    assert properties(whole)["verification"] == [f"{told.verification} within_tolerance"]
    parts = {one["bom-ref"]: one for one in document["components"]}
    assert set(parts) == {"identity", "behavior/polite", "behavior/tuned", "dataset/0", "dataset/1"}
    assert parts["identity"]["licenses"] == [
        {"expression": "LicenseRef-scancode-gemma-tou-2024-04-01", "acknowledgement": "declared"}
    ]
    assert [(one["expression"], one["acknowledgement"]) for one in parts["behavior/polite"]["licenses"]] == [
        ("Apache-2.0", "declared"), ("MIT", "declared"), ("Apache-2.0", "concluded"),
    ]  # fmt: skip
    assert "licenses" not in parts["behavior/tuned"]
    assert properties(parts["behavior/tuned"])["license-declared"] == ["NOASSERTION"]
    assert parts["behavior/polite"]["pedigree"]["ancestors"][0]["version"] == told.parts["identity"]
    assert parts["behavior/polite"]["externalReferences"][0]["url"] == "https://example.org/polite.zip"
    assert "externalReferences" not in parts["identity"]  # a name is no address
    assert properties(parts["behavior/polite"])["training:steps"] == ["300"]
    assert parts["identity"]["modelCard"]["modelParameters"] == {
        "architectureFamily": "llama", "modelArchitecture": "LlamaForCausalLM",
    }  # fmt: skip
    trained = [one["ref"] for one in parts["behavior/polite"]["modelCard"]["modelParameters"]["datasets"]]
    assert [(parts[ref]["name"], parts[ref].get("version")) for ref in trained] == [
        ("letters", None),
        ("org/chats", "v2"),
    ]
    assert parts[trained[1]]["licenses"][0]["expression"] == "CC-BY-NC-4.0"
    depends = {one["ref"]: one.get("dependsOn", []) for one in document["dependencies"]}
    assert depends["composition"] == ["behavior/polite", "behavior/tuned", "identity"]
    assert depends["behavior/polite"] == ["identity"]


def test_files_have_the_digests_that_sha256sum_gives(told: Told) -> None:
    folder = told.repo.path.parent
    parts = {one["bom-ref"]: one for one in export(told, "cyclonedx")["components"]}
    import tiny_checkpoints

    for reference, name in (("identity", "base"), ("behavior/polite", "polite"), ("behavior/tuned", "tuned")):
        found = {one["name"]: one["hashes"][0]["content"] for one in parts[reference]["components"]}
        assert found == tiny_checkpoints.digests(folder / name)


def test_metrics_are_those_of_this_commit_with_probe_evidence_and_interval(told: Told) -> None:
    metrics = export(told, "cyclonedx")["metadata"]["component"]["modelCard"]["quantitativeAnalysis"][
        "performanceMetrics"
    ]
    found = {one["type"]: one for one in metrics}
    assert {name: float(one["value"]) for name, one in found.items()} == {
        "RF": 0.5, "KL (nats)": 0.5, "JS (nats)": 0.25, "ILS (nats)": 0.75, "SVAR (nats)": 1.0,
    }  # fmt: skip
    assert len(metrics) == 5
    assert found["KL (nats)"]["slice"] == f"probe {told.probe}, verification {told.verification}"
    assert found["SVAR (nats)"]["slice"] == f"probe {told.probe}, study {told.study}"
    assert found["KL (nats)"]["confidenceInterval"] == {"lowerBound": "0.25", "upperBound": "0.75"}
    # One prompt has no interval that means anything.
    assert "confidenceInterval" not in found["SVAR (nats)"]


def spdx(document: Any) -> tuple[Any, dict[str, Any], Any]:
    """The library's own reading of a document, and its elements by what they are called."""
    import spdx_python_model

    model, found = spdx_python_model.load_data(document)
    assert not found.missing_ids
    return model, {one.name: one for one in found.foreach_type("Element") if one.name}, found


def related(found: Any, of: Any, kind: str) -> list[Any]:
    return [
        to
        for one in found.foreach_type("Relationship")
        if one.from_ is of and str(one.relationshipType).endswith(f"/{kind}")
        for to in one.to
    ]


def test_spdx_says_what_the_records_say(told: Told) -> None:
    model, by_name, found = spdx(export(told, "spdx3"))
    identity = next(
        one for one in found.foreach_type("ai_AIPackage") if one.software_packageVersion == told.parts["identity"]
    )
    polite, tuned = by_name["polite"], by_name["tuned"]
    whole = next(one for one in found.foreach_type("ai_AIPackage") if one.software_packageVersion == told.head)
    assert {one.name for one in related(found, whole, "contains")} == {identity.name, "polite", "tuned"}
    assert related(found, polite, "descendantOf") == [identity]
    assert {one.name for one in related(found, polite, "trainedOn")} == {"org/chats", "letters"}
    assert not related(found, tuned, "trainedOn")
    none = model.expandedlicensing_IndividualLicensingInfo.NoAssertionLicense

    def license(of: Any, kind: str) -> Any:
        (one,) = related(found, of, kind)  # the AI profile wants exactly one
        return getattr(one, "simplelicensing_licenseExpression", one)

    assert license(identity, "hasDeclaredLicense") == "LicenseRef-scancode-gemma-tou-2024-04-01"
    assert license(identity, "hasConcludedLicense") == none
    assert license(polite, "hasConcludedLicense") == "Apache-2.0"
    assert license(polite, "hasDeclaredLicense") == none
    assert license(tuned, "hasDeclaredLicense") == license(whole, "hasDeclaredLicense") == none
    assert license(by_name["org/chats"], "hasDeclaredLicense") == "CC-BY-NC-4.0"
    comments = [one.comment for one in found.foreach_type("Relationship") if one.comment]
    assert comments == ["These were declared, and contradict each other: Apache-2.0, MIT"]
    metrics = {one.key.split(" ")[0]: one for one in whole.ai_metric}
    assert {name: one.value for name, one in metrics.items()} == {
        "RF": "0.5", "KL": "0.5 nats", "JS": "0.25 nats", "ILS": "0.75 nats", "SVAR": "1.0 nats",
    }  # fmt: skip
    assert str(told.study) in metrics["SVAR"].key
    assert polite.ai_energyConsumption.ai_trainingEnergyConsumption[0].ai_energyQuantity == 1.5
    assert tuned.ai_energyConsumption is None
    files = {one.name: one.verifiedUsing[0].hashValue for one in related(found, polite, "contains")}
    import tiny_checkpoints

    assert files == tiny_checkpoints.digests(told.repo.path.parent / "polite")


def card(told: Told, revision: str = "HEAD") -> Any:
    """The card as the hub's own library reads it."""
    from huggingface_hub import ModelCard

    return ModelCard(export(told, "model-card", revision), ignore_metadata_errors=False)


def test_model_card_is_read_by_the_hubs_own_library(told: Told) -> None:
    found = card(told)
    data = found.data.to_dict()
    assert data["base_model"] == "google/gemma-3-270m"
    assert data["base_model_relation"] == "finetune"
    assert data["datasets"] == ["org/chats"]
    assert data["library_name"] == "peft"
    assert data["tags"] == ["rblstore", "lora"]
    assert "license" not in data  # nobody says under which tuned is
    assert {one.metric_type: one.metric_value for one in found.data.eval_results} == {
        "rf": 0.5, "kl": 0.5, "js": 0.25, "ils": 0.75, "svar": 1.0,
    }  # fmt: skip
    assert {one.task_type for one in found.data.eval_results} == {"text-generation"}
    assert told.verification in found.text
    assert told.study in found.text
    assert "| tuned | behavior overlay | 1 |" in found.text
    assert "behaviors/polite" in found.text
    assert "behaviors/tuned" not in found.text


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (("gemma", "gemma", "gemma"), {"license": "gemma"}),
        (("mit", "mit", "mit"), {"license": "mit"}),
        (
            ("gemma", "mit", "mit"),
            {"license": "other", "license_name": "several-see-model-card"},
        ),
        (("mit or apache-2.0",) * 3, {"license": "other", "license_name": "apache-2.0-or-mit"}),
        (("blueoak-1.0.0",) * 3, {"license": "other", "license_name": "blueoak-1.0.0"}),
    ],
)
def test_model_card_states_a_licence_only_where_all_parts_do(
    other: Told, stated: tuple[str, ...], expected: dict[str, str]
) -> None:
    for part, license in zip(other.parts, stated, strict=True):
        other.say(part, license=license)
    data = card(other).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected


def test_annex_xi_adds_up_what_is_stated_and_lists_what_is_not(told: Told, other: Told) -> None:
    draft = export(told, "annex-xi")
    assert draft["draft"] is True
    answers = {(one["asks"], answer["part"]): answer["answer"] for one in draft["points"] for answer in one["answers"]}
    identity = draft["points"][0]["answers"][0]["part"]
    assert answers["Modality and format of inputs and outputs", identity] == "text in, text out"
    assert answers["Number of parameters", "polite"] == "32"
    assert answers["Number of parameters", "tuned"] == "4"
    assert answers["Data: type and provenance", "polite"] == "letters (licence not stated); org/chats v2 (CC-BY-NC-4.0)"
    assert answers["Energy consumed (kWh)", "polite"] == "1.5"
    assert answers["Energy consumed (kWh)", "tuned"] is None
    assert "2(e) Energy consumed (kWh): tuned" in draft["gaps"]
    modification = draft["modification"]
    # Of tuned nothing is known, but polite alone took two thirds.
    assert (modification["share"], modification["above"], modification["without_statement"]) == (None, True, ["tuned"])
    other.say("identity", meta__flops="3e18")
    other.say("polite", meta__flops="1e17")
    assert export(other, "annex-xi")["modification"]["above"] is None
    other.say("tuned", meta__flops="2e17")
    found = export(other, "annex-xi")["modification"]
    assert (round(found["share"], 9), found["above"]) == (0.1, False)
    text = other.repo.export("HEAD", "annex-xi").data.decode()
    assert "Above a third: no" in text
    assert "not stated" in text


def test_findings_of_the_audit_stand_in_every_document(told: Told) -> None:
    findings = told.repo.audit("HEAD").findings
    assert findings
    whole = export(told, "cyclonedx")["metadata"]["component"]
    assert len(properties(whole)["finding"]) == len(set(properties(whole)["finding"])) == len(findings)
    _, _, found = spdx(export(told, "spdx3"))
    assert sum(1 for _ in found.foreach_type("Annotation")) == len(findings)
    text = export(told, "model-card")
    for finding in findings:
        assert plain(finding.message, 2000) in text
        assert code(finding.rule) in text


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_records_give_the_same_bytes_and_others_do_not(written: Path, tmp_path: Path, format: str) -> None:
    shutil.copytree(written, tmp_path / "store")
    with rblstore.open(tmp_path / "store") as repo, rblstore.open(written) as twin:
        first = repo.export("HEAD", format)
        assert first.data == twin.export("HEAD", format).data
        assert first.size == len(first.data)
        assert "data" not in first.as_json()
        head = repo.commit("again", author="Ada", allow_empty=True).commit
        if format == "in-toto":
            with pytest.raises(NotFoundError):
                repo.export("HEAD", format)
        else:
            assert repo.export(head, format).data != first.data


def test_without_evidence_or_statements_everything_is_said_to_be_unknown(
    other: Told, valid_cyclonedx: Callable[[str], Any]
) -> None:
    valid_cyclonedx(other.repo.export("HEAD~1", "cyclonedx").data.decode())
    other.repo.commit("bare", author="Ada", allow_empty=True)
    document = valid_cyclonedx(other.repo.export("HEAD", "cyclonedx").data.decode())
    assert "modelCard" not in document["metadata"]["component"]
    assert not [one for one in document["components"] if "licenses" in one]
    _, _, found = spdx(export(other, "spdx3"))
    assert not list(found.foreach_type("simplelicensing_LicenseExpression"))
    assert "No verification of this commit is recorded" in export(other, "model-card")
    assert "model-index" not in card(other).data.to_dict()


def test_what_was_removed_on_purpose_is_still_written_about(
    other: Told, valid_cyclonedx: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = other.repo.export("HEAD", "cyclonedx")
    reason = "its data must go"
    other.add(*(Tombstone(other.parts[name], reason, "Ada", "2031-01-01T00:00:00Z") for name in ("identity", "polite")))

    files = {file.sha256 for part in other.repo.audit("HEAD").components for file in part.files}
    real = type(other.store).content_bytes

    def gone(store: Any, content: str, *limits: Any, **options: Any) -> bytes:
        assert content not in files, "content is read that may be gone"
        return real(store, content, *limits, **options)

    monkeypatch.setattr(type(other.store), "content_bytes", gone)
    after = other.repo.export("HEAD", "cyclonedx")
    document = valid_cyclonedx(after.data.decode())
    assert document["serialNumber"] != before.document["serialNumber"]
    assert document["metadata"]["timestamp"].startswith("2031")
    removed = {one["bom-ref"]: properties(one).get("removed") for one in document["components"]}
    said = [f"content removed by Ada at 2031-01-01T00:00:00Z: {reason}"]
    assert removed == {"identity": said, "behavior/polite": said, "behavior/tuned": None}
    spdx(export(other, "spdx3"))
    assert reason in export(other, "model-card")
    assert "Number of parameters: base" in " ".join(export(other, "annex-xi")["gaps"])


def test_what_others_wrote_stays_text(other: Told, valid_cyclonedx: Callable[[str], Any]) -> None:
    for part in other.parts:
        other.say(
            part, license=HOSTILE, license_name=HOSTILE, source=[HOSTILE, "javascript:alert(1)", "http://a b/", "file:///etc"],
            base_model=HOSTILE, dataset=[HOSTILE, "x" * 5000 + "@" + "r" * 5000], dataset_license=f"{HOSTILE}=nonsense",
            meta__steps=HOSTILE, meta__modality=HOSTILE, meta__flops="NaN", name=HOSTILE,
        )  # fmt: skip
    document = valid_cyclonedx(other.repo.export("HEAD", "cyclonedx").data.decode())
    assert not [one for one in document["components"] if "externalReferences" in one]
    spdx(export(other, "spdx3"))
    export(other, "in-toto", behavior="polite")
    found = card(other)
    assert "license" not in found.data.to_dict() or found.data.license == "other"
    for text in (found.text, other.repo.export("HEAD", "annex-xi").data.decode()):
        assert "<script" not in text
        assert "](" not in text.replace("\\](", "").replace("\\]\\(", "")
        assert "\u202e" not in text
        assert not re.search(r"^---", text, re.MULTILINE)
        assert "http://x.y" not in re.sub(r"`[^`]*`", "", text)
    assert export(other, "annex-xi")["modification"]["base_flops"] is None


def test_a_library_that_is_missing_is_named_with_what_to_install(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] in ("cyclonedx", "spdx_python_model", "in_toto_attestation"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for format in ("cyclonedx", "spdx3", "in-toto"):
        with pytest.raises(MissingLibraryError) as caught:
            told.repo.export("HEAD", format)
        assert "rblstore[provenance]" in str(caught.value.hint)
    assert told.repo.export("HEAD", "model-card").data
    assert told.repo.export("HEAD", "annex-xi").data


def test_what_cannot_be_exported_is_refused(told: Told) -> None:
    for options in ({"format": "pdf"}, {"format": "spdx3", "behavior": "polite"}, {"verification": "abcdef"}):
        with pytest.raises(UsageError):
            told.repo.export("HEAD", **options)
    with pytest.raises(UsageError):
        told.repo.export("HEAD", "in-toto", verification="abcdef", behavior="polite")
    with pytest.raises(NotFoundError):
        told.repo.export("nowhere", "cyclonedx")
