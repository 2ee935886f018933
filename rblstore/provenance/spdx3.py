"""SPDX 3.0.1 with the classes for AI and data, as SPDX generates them from its own model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

from rblstore.provenance.document_facts import (
    DocumentFacts,
    FileFact,
    PartFact,
    SignatureFact,
    finding_line,
    is_url,
    moment,
    number_said,
)
from rblstore.provenance.hub_licenses import NOASSERTION
from rblstore.provenance.libraries import needed_for
from rblstore.provenance.said import DatasetSaid

SPEC_VERSION: Final = "3.0.1"
BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
# The AI and dataset profiles, whose classes are used, want a supplier, a release time and a place to download from for
# everything: nobody states these of a composition, and conformance is not claimed by guessing.
_PROFILES: Final = ("core", "simpleLicensing", "software")


def spdx3_document(facts: DocumentFacts) -> bytes:
    """An SPDX document: an AI package for the composition, the identity and each behavior, their files and data.

    Each AI package has exactly one declared and one concluded licence, as the AI profile wants; where nobody says, or
    several that differ are declared, it is NoAssertionLicense, and a comment has what was said.

    Args:
        facts: Of one commit.

    Returns:
        JSON-LD, the same for the same facts.

    Raises:
        MissingLibraryError: The library is not installed.
    """
    with needed_for("SPDX 3 documents"):
        from spdx_python_model.bindings import v3_0_1 as model
    return _Document(model, facts).encode()


class _Document:
    """One document as it grows."""

    def __init__(self, model: ModuleType, facts: DocumentFacts) -> None:
        self._model: Any = model
        self._facts = facts
        self._prefix = f"urn:uuid:{facts.uuid('spdx3')}#"
        self._elements: list[Any] = []
        self._licenses: dict[str, Any] = {}
        self._datasets: dict[tuple[str, str | None], Any] = {}
        self._info = self._model.CreationInfo(_id="_:creation", specVersion=SPEC_VERSION, created=moment(facts.stated))

    def encode(self) -> bytes:
        """The document's bytes."""
        facts, model = self._facts, self._model
        tool = self._add(model.Tool, "tool", name=f"rblstore {facts.version}")
        agent = self._add(model.SoftwareAgent, "agent", name="rblstore")
        self._info.createdBy = [agent.spdxId]
        self._info.createdUsing = [tool.spdxId]
        whole = self._whole()
        parts = [self._part(part, f"part-{at}") for at, part in enumerate(facts.parts)]
        self._relate(whole, "contains", parts)
        for behavior in parts[1:]:
            self._relate(behavior, "descendantOf", parts[:1])
        self._relate(whole, "hasEvidence", [self._signature(fact, at) for at, fact in enumerate(facts.signatures)])
        for at, finding in enumerate(facts.findings):
            self._add(
                model.Annotation,
                f"finding-{at}",
                annotationType=model.AnnotationType.review,
                subject=whole.spdxId,
                statement=finding_line(finding),
            )
        inner = [element.spdxId for element in self._elements]
        sbom = self._add(
            model.software_Sbom,
            "sbom",
            rootElement=[whole.spdxId],
            element=inner,
            profileConformance=self._conformance(),
            software_sbomType=[model.software_SbomType.analyzed],
        )
        self._add(
            model.SpdxDocument,
            "document",
            name=facts.name,
            rootElement=[sbom.spdxId],
            element=[*inner, sbom.spdxId],
            profileConformance=self._conformance(),
        )
        return self._serialised()

    def _whole(self) -> Any:
        facts, model = self._facts, self._model
        whole = self._add(
            model.ai_AIPackage,
            "composition",
            name=facts.name,
            description=facts.subject,
            comment=f"rblstore composition {facts.composition}, committed by {facts.author}",
            software_packageVersion=facts.commit,
            software_primaryPurpose=model.software_SoftwarePurpose.model,
            builtTime=moment(facts.time),
            verifiedUsing=[self._hash(facts.commit)],
            ai_typeOfModel=self._kinds(facts.identity),
            ai_metric=[
                self._entry(f"{metric.name} ({metric.slice})", " ".join(filter(None, (metric.text, metric.unit))))
                for metric in facts.metrics
            ],
            ai_metricDecisionThreshold=[
                self._entry(f"KL and JS (verification {fact.id})", f"{fact.record.tolerance!r} nats")
                for fact in facts.verifications
            ],
        )
        self._license(whole, "hasDeclaredLicense", ())
        self._license(whole, "hasConcludedLicense", ())
        return whole

    def _part(self, part: PartFact, name: str) -> Any:
        model, known = self._model, part.said
        urls = [source for source in known.sources if is_url(source)]
        rest = [source for source in known.sources if source not in urls]
        package = self._add(
            model.ai_AIPackage,
            name,
            name=part.label,
            comment="; ".join(_remarks(part, rest)),
            software_packageVersion=part.id,
            software_primaryPurpose=model.software_SoftwarePurpose.model,
            verifiedUsing=[self._hash(part.id)],
            ai_typeOfModel=self._kinds(part),
            ai_hyperparameter=[
                *([self._entry("weight", repr(part.weight))] if part.role == "behavior" else []),
                *(self._entry(key, value) for key, value in sorted(known.training.items())),
            ],
            externalRef=[
                model.ExternalRef(externalRefType=model.ExternalRefType.altDownloadLocation, locator=[url])
                for url in urls
            ],
        )
        if urls:
            package.software_downloadLocation = urls[0]
        energy = number_said(known.training, "energy_kwh")
        if energy is not None and "e" not in repr(energy):  # SPDX wants a decimal, which has no exponent
            package.ai_energyConsumption = model.ai_EnergyConsumption(
                ai_trainingEnergyConsumption=[
                    model.ai_EnergyConsumptionDescription(
                        ai_energyQuantity=energy, ai_energyUnit=model.ai_EnergyUnitType.kilowattHour
                    )
                ]
            )
        self._license(package, "hasDeclaredLicense", known.declared)
        self._license(package, "hasConcludedLicense", () if known.concluded is None else (known.concluded,))
        self._relate(package, "contains", [self._file(file, name, at) for at, file in enumerate(part.files)])
        self._relate(package, "trainedOn", [self._dataset(data) for data in known.datasets])
        return package

    def _file(self, file: FileFact, part: str, at: int) -> Any:
        return self._add(
            self._model.software_File, f"{part}-file-{at}", name=file.path, verifiedUsing=[self._hash(file.sha256)]
        )

    def _signature(self, fact: SignatureFact, at: int) -> Any:
        """The sigstore bundle, which somebody who has it can verify."""
        return self._add(
            self._model.software_File,
            f"signature-{at}",
            name=f"signature {fact.id}",
            comment=fact.text,
            contentType=BUNDLE_TYPE,
            software_primaryPurpose=self._model.software_SoftwarePurpose.evidence,
            builtTime=moment(fact.time),
            verifiedUsing=[self._hash(fact.bundle)],
        )

    def _dataset(self, data: DatasetSaid) -> Any:
        key = (data.name, data.revision)
        if key not in self._datasets:
            found = self._add(
                self._model.dataset_DatasetPackage,
                f"dataset-{len(self._datasets)}",
                name=data.name,
                software_primaryPurpose=self._model.software_SoftwarePurpose.data,
                dataset_datasetType=[self._model.dataset_DatasetType.noAssertion],
            )
            if data.revision:
                found.software_packageVersion = data.revision
            if is_url(data.name):
                found.software_downloadLocation = data.name
            self._license(found, "hasDeclaredLicense", data.licenses)
            self._license(found, "hasConcludedLicense", ())
            self._datasets[key] = found
        return self._datasets[key]

    def _license(self, of: Any, relation: str, expressions: Sequence[str]) -> None:
        stated = [expression for expression in expressions if expression != NOASSERTION]
        if len(stated) != 1:
            individual = self._model.expandedlicensing_IndividualLicensingInfo.NoAssertionLicense
            said = f"These were declared, and contradict each other: {', '.join(stated)}" if stated else None
            self._relate(of, relation, [individual], said)
            return
        if stated[0] not in self._licenses:
            self._licenses[stated[0]] = self._add(
                self._model.simplelicensing_LicenseExpression,
                f"license-{len(self._licenses)}",
                simplelicensing_licenseExpression=stated[0],
            )
        self._relate(of, relation, [self._licenses[stated[0]]])

    def _relate(self, of: Any, relation: str, to: Sequence[Any], comment: str | None = None) -> None:
        if not to:
            return
        kinds = self._model.RelationshipType
        found = self._add(
            self._model.Relationship,
            f"relationship-{len(self._elements)}",
            from_=of.spdxId,
            relationshipType=getattr(kinds, relation),
            to=[one if isinstance(one, str) else one.spdxId for one in to],
        )
        if comment is not None:
            found.comment = comment

    def _kinds(self, part: PartFact) -> list[str]:
        return [kind for kind in (part.model_type, *part.architectures, part.type or part.form) if kind]

    def _hash(self, digest: str) -> Any:
        return self._model.Hash(algorithm=self._model.HashAlgorithm.sha256, hashValue=digest)

    def _entry(self, key: str, value: str) -> Any:
        return self._model.DictionaryEntry(key=key, value=value)

    def _conformance(self) -> list[str]:
        return [getattr(self._model.ProfileIdentifierType, name) for name in _PROFILES]

    def _add(self, kind: Any, key: str, **members: Any) -> Any:
        element = kind(spdxId=self._prefix + key, creationInfo=self._info)
        for member, value in members.items():
            if value not in (None, "", []):
                setattr(element, member, value)
        self._elements.append(element)
        return element

    def _serialised(self) -> bytes:
        found = self._model.SHACLObjectSet([self._info, *self._elements])
        data = self._model.JSONLDSerializer().serialize_data(found, force_at_graph=True)
        # A set has no order, and the same facts are to be the same bytes.
        order = {element.spdxId: at for at, element in enumerate(self._elements)}
        data["@graph"].sort(key=lambda one: order.get(one.get("spdxId", ""), -1))
        return (json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def _remarks(part: PartFact, sources: Sequence[str]) -> list[str]:
    found = [f"rblstore {part.role} {part.id}"]
    if part.parameters is not None:
        found.append(f"{part.parameters} parameters")
    if part.removed:
        found.append(part.removed)
    found += [f"source: {source}" for source in sources]
    if part.said.source_revision:
        found.append(f"source revision: {part.said.source_revision}")
    found += [f"made from: {base}" for base in part.said.base_models]
    found += [f"terms in {text.path} (SHA-256 {text.sha256}): {text.expression}" for text in part.said.texts]
    return found
