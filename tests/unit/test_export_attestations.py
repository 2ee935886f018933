"""in-toto statements of verifications and of trainings; and the plain rules that every export goes by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import export_story
import pytest
import tiny_checkpoints
from export_story import Told

from rblstore.errors import NotFoundError
from rblstore.provenance.document_facts import hub_id, is_url, latest, whole_second


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """The story with statements."""
    told = export_story.tell(tmp_path_factory.mktemp("attested"))
    export_story.speak(told)
    yield told
    told.repo.close()


def test_in_toto_attests_the_latest_verification_over_the_files_of_a_checkout(told: Told, tmp_path: Path) -> None:
    from google.protobuf.json_format import Parse
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    result = told.repo.export("HEAD", "in-toto")
    Statement.copy_from_pb(Parse(result.data, statement_pb2.Statement())).validate()
    statement = result.document
    assert statement["predicateType"].startswith("https://github.com/rblstore/rblstore/")
    predicate = statement["predicate"]
    assert (predicate["verdict"], predicate["rf"], predicate["kl"], predicate["js"]) == (
        "within_tolerance",
        0.5,
        0.5,
        0.25,
    )
    assert predicate["bit_equal"] is False
    assert predicate["verification"] == told.verification
    assert predicate["removed"] == ["brief"]
    assert predicate["measured_prompts"] == 2
    assert predicate["intervals"]["kl"]["low"] == 0.25
    told.repo.checkout("HEAD", tmp_path / "out")
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert subjects.pop(f"commit/{told.head}") == told.head
    assert subjects == tiny_checkpoints.digests(tmp_path / "out")
    again = told.repo.export("HEAD", "in-toto", verification=told.verification[:10])
    assert again.data == result.data
    with pytest.raises(NotFoundError, match="no verification"):
        told.repo.export("HEAD", "in-toto", verification=told.study)


def test_in_toto_attests_how_a_behavior_was_trained(told: Told) -> None:
    import in_toto_attestation.predicates.provenance.v1.provenance_pb2 as slsa
    from google.protobuf.json_format import ParseDict

    statement = told.repo.export("HEAD", "in-toto", behavior="polite").document
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    ParseDict(statement["predicate"], slsa.Provenance())
    build = statement["predicate"]["buildDefinition"]
    assert build["externalParameters"] == {"steps": "300", "flops": "2e18", "energy_kwh": "1.5"}
    identity, *data = build["resolvedDependencies"]
    assert identity["digest"]["sha256"] == told.parts["identity"]
    assert [(one["name"], one["annotations"].get("revision"), one["annotations"]["licenses"]) for one in data] == [
        ("letters", None, []), ("org/chats", "v2", ["CC-BY-NC-4.0"]),
    ]  # fmt: skip
    assert {one["digest"]["sha256"] for one in statement["subject"]} >= {told.parts["polite"]}
    for name in ("tuned", "nobody"):  # of one nothing is known, the other is not there
        with pytest.raises(NotFoundError) as caught:
            told.repo.export("HEAD", "in-toto", behavior=name)
        assert caught.value.code == "nothing_to_attest"


def test_times_names_and_addresses() -> None:
    times = ("2026-03-01T12:00:00.5Z", "2026-03-01T14:00:00+02:00", "2026-03-01T12:00:00.25Z")
    assert latest(times) == times[0]
    assert latest(("2026-03-01T12:00:00Z", "2026-03-01T11:30:00-01:00")) == "2026-03-01T11:30:00-01:00"
    assert whole_second("2026-03-01T12:00:00.987+01:30") == "2026-03-01T10:30:00Z"
    assert whole_second("0001-01-01T00:00:00+01:00") == "0001-01-01T00:00:00Z"
    refused = ("http://[::1]/", "https://a.org/<x>", "https://u@a.org", "ftp://a.org", "https://", "https://a.org/%zz")
    assert is_url("https://a.org/x?y=1#z")
    assert not [one for one in refused if is_url(one)]
    assert hub_id("https://huggingface.co/datasets/org/name/tree/main") == "org/name"
    assert hub_id("org/name") == "org/name"
    assert [hub_id(one) for one in ("name", "a/b/c", "../name", "https://example.org/org/name", "./a")] == [None] * 5
