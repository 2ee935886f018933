"""A CycloneDX 1.7 bill of materials for a composition: models, the files they came in, data, licences, measurements."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rblstore.provenance.document_facts import (
    DocumentFacts,
    FileFact,
    MetricFact,
    PartFact,
    SignatureFact,
    finding_line,
    is_url,
    moment,
)
from rblstore.provenance.hub_licenses import NOASSERTION
from rblstore.provenance.libraries import needed_for
from rblstore.provenance.said import DatasetSaid

if TYPE_CHECKING:
    from cyclonedx.model import ExternalReference, Property
    from cyclonedx.model.component import Component

COMPOSITION: Final = "composition"
"""``bom-ref`` of the component that the document is about."""
_OURS: Final = "rblstore:"
_VERSION_LENGTH: Final = 1024
"""The most characters that CycloneDX allows a version."""


def cyclonedx_document(facts: DocumentFacts) -> bytes:
    """A bill of materials of a composition.

    The library has classes for neither model cards nor data sets, and takes one licence expression a component: these
    are added to what it writes.

    Args:
        facts: Of one commit.

    Returns:
        JSON, the same for the same facts.

    Raises:
        MissingLibraryError: The library is not installed.
    """
    with needed_for("CycloneDX documents"):
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot7
    datasets = _datasets(facts)
    whole = _whole(facts)
    identity = _part(facts.identity, None)
    behaviors = [_part(part, facts.identity) for part in facts.behaviors]
    data = [_data(one, reference) for one, reference in datasets.items()]
    tool = Component(name="rblstore", type=ComponentType.APPLICATION, version=facts.version)
    bom = Bom(
        serial_number=facts.uuid("cyclonedx"),
        metadata=BomMetaData(timestamp=moment(facts.stated), component=whole),
        components=[identity, *behaviors, *data],
    )
    bom.metadata.tools.components.add(tool)
    bom.register_dependency(whole, [identity, *behaviors])
    for behavior in behaviors:
        bom.register_dependency(behavior, [identity])
    document = json.loads(JsonV1Dot7(bom).output_as_string())
    _complete(document, facts, datasets)
    return (json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def _datasets(facts: DocumentFacts) -> dict[DatasetSaid, str]:
    found: dict[DatasetSaid, str] = {}
    for part in facts.parts:
        for one in part.said.datasets:
            found.setdefault(one, f"dataset/{len(found)}")
    return found


def _reference(part: PartFact) -> str:
    return part.role if part.role == "identity" else f"behavior/{part.name}"


def _whole(facts: DocumentFacts) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    properties: dict[str, Sequence[str]] = {
        "commit": [facts.commit],
        "composition": [facts.composition],
        "committed-by": [facts.author],
        "committed-at": [facts.time],
        "finding": [finding_line(finding) for finding in facts.findings],
        "rules": [f"{name} {version}" for name, version in facts.rules],
        "statement": list(facts.statements),
        "verification": [f"{fact.id} {fact.record.verdict}" for fact in facts.verifications],
    }
    return Component(
        name=facts.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=COMPOSITION,
        version=facts.commit,
        description=facts.subject,
        external_references=[_signature(fact) for fact in facts.signatures],
        properties=_properties(properties),
    )


def _signature(fact: SignatureFact) -> ExternalReference:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri

    kinds = {"commit": ExternalReferenceType.DIGITAL_SIGNATURE, "verification": ExternalReferenceType.ATTESTATION}
    properties: dict[str, Sequence[str]] = {
        "signature": [fact.id],
        fact.over: [fact.subject],
        "method": [fact.method],
        "key": [fact.key] if fact.key is not None else [],
        "identity": [fact.identity] if fact.identity is not None else [],
        "recorded-by": [fact.author],
        "recorded-at": [fact.time],
    }
    return ExternalReference(
        type=kinds[fact.over],
        url=XsUri(fact.address),
        comment=fact.text,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=fact.bundle)],
        properties=_properties(properties),
    )


def _part(part: PartFact, ancestor: PartFact | None) -> Component:
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    known = part.said
    properties: dict[str, Sequence[str]] = {
        part.role: [str(part.id)],
        "form": [part.form] if part.form else [],
        "type": [part.type] if part.type else [],
        "weight": [repr(part.weight)] if part.role == "behavior" else [],
        "parameters": [] if part.parameters is None else [str(part.parameters)],
        "source": known.sources,
        "source-revision": [known.source_revision] if known.source_revision else [],
        "base-model": known.base_models,
        "base-revision": [known.base_revision] if known.base_revision else [],
        "relation": [known.relation] if known.relation else [],
        "license-text": [f"{text.path} sha256:{text.sha256} {text.expression}" for text in known.texts],
        "problem": known.problems,
        "removed": [part.removed] if part.removed else [],
        **{f"training:{key}": [value] for key, value in known.training.items()},
    }
    pedigree = None
    if ancestor is not None:
        base = Component(
            name=ancestor.label, type=ComponentType.MACHINE_LEARNING_MODEL, version=str(ancestor.id),
            properties=_properties({"identity": [str(ancestor.id)]}),
        )  # fmt: skip
        pedigree = Pedigree(ancestors=[base])
    return Component(
        name=part.label,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_reference(part),
        version=str(part.id),
        external_references=_references(known.sources),
        pedigree=pedigree,
        properties=[*_properties(properties), *_license_properties(known.declared, known.concluded)],
    )


def _data(one: DatasetSaid, reference: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=one.name,
        type=ComponentType.DATA,
        bom_ref=reference,
        version=one.revision[:_VERSION_LENGTH] if one.revision else None,
        external_references=_references([one.name]),
        properties=_license_properties(one.licenses, None),
    )


def _file(file: FileFact, owner: str) -> dict[str, Any]:
    """A file as JSON: by way of the library's classes, those of a large model take seconds."""
    return {
        "type": "file",
        "bom-ref": f"{owner}/{file.path}",
        "name": file.path,
        "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        "properties": [{"name": f"{_OURS}bytes", "value": str(file.size)}],
    }


def _properties(values: Mapping[str, Iterable[str]]) -> list[Property]:
    from cyclonedx.model import Property

    return [Property(name=_OURS + name, value=str(value)) for name, found in values.items() for value in found]


def _license_properties(declared: Sequence[str], concluded: str | None) -> list[Property]:
    """What CycloneDX has no place for: that nobody says."""
    stated = {"license-declared": [] if declared else [NOASSERTION]}
    if concluded == NOASSERTION:
        stated["license-concluded"] = [NOASSERTION]
    return _properties(stated)


def _references(sources: Iterable[str]) -> list[Any]:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri

    return [
        ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(source))
        for source in sources
        if is_url(source)
    ]


def _complete(document: dict[str, Any], facts: DocumentFacts, datasets: Mapping[DatasetSaid, str]) -> None:
    """Adds model cards, data and licences to the document that the library wrote."""
    by_reference = {one["bom-ref"]: one for one in document["components"]}
    for part in facts.parts:
        component = by_reference[_reference(part)]
        if part.files:
            component["components"] = [_file(file, _reference(part)) for file in part.files]
        card = _card(part, datasets)
        if card:
            component["modelCard"] = card
        _set_licenses(component, part.said.declared, part.said.concluded)
    for one, reference in datasets.items():
        by_reference[reference]["data"] = [{"type": "dataset", "name": one.name}]
        _set_licenses(by_reference[reference], one.licenses, None)
    if facts.metrics:
        metrics = [_metric(metric) for metric in facts.metrics]
        document["metadata"]["component"]["modelCard"] = {"quantitativeAnalysis": {"performanceMetrics": metrics}}


def _card(part: PartFact, datasets: Mapping[DatasetSaid, str]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if part.model_type:
        parameters["architectureFamily"] = part.model_type
    if part.architectures or part.type:
        parameters["modelArchitecture"] = ", ".join(part.architectures) or part.type
    if part.said.datasets:
        parameters["datasets"] = [{"ref": datasets[one]} for one in dict.fromkeys(part.said.datasets)]
    return {"modelParameters": parameters} if parameters else {}


def _set_licenses(component: dict[str, Any], declared: Iterable[str], concluded: str | None) -> None:
    found = [{"expression": expression, "acknowledgement": "declared"} for expression in declared]
    if concluded is not None and concluded != NOASSERTION:
        found.append({"expression": concluded, "acknowledgement": "concluded"})
    if found:
        component["licenses"] = found


def _metric(metric: MetricFact) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": f"{metric.name} ({metric.unit})" if metric.unit else metric.name,
        "value": metric.text,
        "slice": metric.slice,
    }
    if metric.low is not None and metric.high is not None:
        found["confidenceInterval"] = {"lowerBound": repr(metric.low), "upperBound": repr(metric.high)}
    return found
