"""The sections of the page on what the model is: its parts, its history, how large its changes are."""

from __future__ import annotations

from rblstore.operations.report_facts import LineageCommit, PartFact, ReportResult
from rblstore.operations.undo import OperationInfo
from rblstore.report.figures import norms_svg
from rblstore.report.html_parts import by, evidence, facts, number, short_id, table, verdict
from rblstore.report.lineage import lineage_svg
from rblstore.report.markup import Markup, element, foreign, join
from rblstore.report.safe_text import figure_text

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_CHANGES = {
    "added": "added",
    "removed": "removed",
    "replaced": "replaced by another",
    "weight": "given another weight",
    "moved": "moved in the order",
}


def byte_text(count: int) -> str:
    """Bytes for people."""
    amount, power = float(count), 0
    while amount >= 1024 and power + 1 < len(_UNITS):
        amount, power = amount / 1024, power + 1
    return f"{amount:.1f} {_UNITS[power]}" if power else f"{count} B"


def composition_section(report: ReportResult) -> Markup:
    """The identity and the behaviors, in the order in which they apply."""
    return element(
        "section",
        element("h2", "What it is made of", id="composition"),
        element(
            "p",
            "Composition ",
            short_id(report.composition),
            ": the identity, and on it the behaviors in this order.",
        ),
        element("div", [_card(at, part) for at, part in enumerate(report.parts)], class_="cards"),
    )


def _card(at: int, part: PartFact) -> Markup:
    name = part.name or ("the base checkpoint" if part.role == "identity" else part.id[:12])
    title = "Identity: " if part.role == "identity" else f"{at}. "
    actions = ", ".join(f"{count} {action}" for action, count in sorted(part.actions.items()))
    ranks = ", ".join(str(rank) for rank in part.ranks)
    licence = join([_claim(one) for one in part.licenses]) if part.licenses else Markup("")
    rows: list[tuple[str, str | Markup | None]] = [
        ("form", f"{part.form}{f' ({part.type})' if part.type else ''}"),
        ("weight", None if part.role == "identity" else figure_text(part.weight)),
        (
            "rank",
            f"{ranks}{f' (alpha {figure_text(part.alpha)})' if part.alpha is not None else ''}" if ranks else None,
        ),
        ("parameters", None if part.elements is None else f"{part.elements:,}"),
        ("tensors", f"{part.tensors:,}" + _dtypes(part)),
        ("effects", actions or None),
        ("files", byte_text(part.bytes)),
        ("licence claimed", licence or element("span", "none stated", class_="soft")),
        ("source claimed", join([_claim(one) for one in part.sources]) if part.sources else None),
        ("id", evidence(part.id)),
    ]
    return element("div", element("h3", title, foreign(name)), facts(rows), class_="card")


def _dtypes(part: PartFact) -> str:
    return f" ({', '.join(f'{count} {dtype}' for dtype, count in sorted(part.dtypes.items()))})" if part.dtypes else ""


def _claim(value: str) -> Markup:
    return element("div", foreign(value))


def lineage_section(report: ReportResult) -> Markup:
    """The graph, the same in words, and what was done to refs."""
    return element(
        "section",
        element("h2", "Where it comes from", id="lineage"),
        element("p", "Newest first. A filled dot was verified as exact, a pale one within tolerance, a crossed one "
                     "diverged, an empty one was not verified. Dotted lines lead to commits that are not shown."),
        lineage_svg(report.lineage, report.older),
        element("h3", "The commits in words"),
        element("ol", [_commit(one) for one in report.lineage], class_="commits"),
        element("p", f"{report.older:,} older ancestors are not shown.") if report.older else Markup(""),
        _operations(report),
    )  # fmt: skip


def _commit(one: LineageCommit) -> Markup:
    changes = "; ".join(f"{change.name} {_CHANGES[change.change]}" for change in one.changes) or "none"
    parents = [join(" " if at else "", evidence(parent)) for at, parent in enumerate(one.parents)]
    slots = ", ".join(
        slot.name if slot.weight == 1.0 else f"{slot.name} × {figure_text(slot.weight)}" for slot in one.slots
    )
    return element(
        "li",
        element("div", element("strong", foreign(one.message.strip(), class_="message"))),
        element("div", verdict(one.verdict), " ", evidence(one.verification) if one.verification else "",
                [join(" ", element("code", foreign(ref))) for ref in one.refs]),
        facts(
            [
                ("commit", evidence(one.commit)),
                ("parents", join(parents) if parents else "none"),
                ("by", by(one.author, one.time)),
                ("behaviors", foreign(slots) if slots else "none"),
                ("changed", foreign(changes)),
                ("identity", "another than its parent's" if one.identity_changed else None),
            ]
        ),
    )  # fmt: skip


def _operations(report: ReportResult) -> Markup:
    if not report.operations:
        return Markup("")
    return join(
        element("h3", "Operations of note"),
        element("p", "Reverts, undoes, tags and moves of branches that touched these commits; newest first."),
        table(
            "Operations of note",
            ("no.", "what", "refs", "by", "operation"),
            [_operation(one) for one in report.operations],
        ),
    )


def _operation(one: OperationInfo) -> tuple[Markup | str, ...]:
    what = join(foreign(one.description), " (undone later)" if one.undone else "")
    refs = join([element("div", foreign(change.ref)) for change in one.changes])
    return str(one.sequence), what, refs, by(one.author, one.time), short_id(one.id)


def changes_section(report: ReportResult) -> Markup:
    """Norms of what each behavior changed, layer by layer."""
    behaviors = [part for part in report.parts if part.role == "behavior"]
    if not behaviors:
        body: Markup = element("p", "There are no behaviors, and so no changes.")
    else:
        picture = norms_svg(report)
        body = join(
            element("p", "The Frobenius norm of what each behavior adds to the stored weights: for a LoRA of its "
                         "scaled product, weight included; for an overlay of the difference from what lies beneath. A "
                         "large norm is no large effect on outputs, and a small one no small effect."),
            element("figure", picture) if picture is not None else Markup(""),
            [_norms(part) for part in behaviors],
        )  # fmt: skip
    return element("section", element("h2", "What each behavior changed", id="changes"), body)


def _norms(part: PartFact) -> Markup:
    name = join(foreign(part.name), " ", evidence(part.id))
    if not part.norms:
        return join(element("h3", name), element("p", f"Not measured: {part.not_measured or 'it changes no tensor'}."))
    missing: dict[str, int] = {}
    for one in part.norms:
        if one.reason is not None:
            missing[one.reason] = missing.get(one.reason, 0) + 1
    notes = [
        element("li", f"{count} tensor{'s' * (count != 1)} not measured: ", foreign(reason))
        for reason, count in missing.items()
    ]
    rows = [
        (foreign(layer.layer or "outside the layers"), str(layer.tensors), number(layer.norm)) for layer in part.layers
    ]
    largest = sorted(
        (one for one in part.norms if one.norm is not None), key=lambda one: (-(one.norm or 0.0), one.tensor)
    )
    return join(
        element("h3", name),
        element("ul", notes) if notes else Markup(""),
        element(
            "details",
            element(
                "summary", f"{part.name}: norms of {len(rows)} layers and the largest of {len(part.norms)} tensors"
            ),
            table("Norm by layer (square root of the summed squares)", ("layer", "tensors", "norm"), rows, (1, 2)),
            table(
                "The tensors that changed most",
                ("tensor", "norm"),
                [(foreign(one.tensor), number(one.norm)) for one in largest[:12]],
                (1,),
            ),
            open=True,
        ),
    )
