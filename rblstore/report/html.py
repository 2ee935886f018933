"""The report as one page that needs nothing else: no network, no script, readable on a phone and on paper."""

from __future__ import annotations

from typing import Final

from rblstore.operations.report_facts import ReportResult, VerificationFact
from rblstore.report.html_evidence import (
    entropy_section,
    environments_section,
    ids_section,
    prompts_section,
    studies_section,
    verification_section,
)
from rblstore.report.html_model import changes_section, composition_section, lineage_section
from rblstore.report.html_parts import by, evidence, number, verdict, with_interval
from rblstore.report.markup import Markup, element, foreign, join, text
from rblstore.report.measures import MEASURES
from rblstore.report.safe_text import one_line
from rblstore.report.stylesheet import STYLESHEET

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser may do with the page: draw it. Styles stand in attributes, as SVG has them."""

_SECTIONS: Final = (
    ("composition", "Made of"),
    ("lineage", "Comes from"),
    ("verifications", "Verifications"),
    ("prompts", "Prompt by prompt"),
    ("entropy", "Entropy"),
    ("changes", "Changes"),
    ("studies", "Studies"),
    ("environments", "Environments"),
    ("evidence", "Evidence"),
    ("reading", "How to read this"),
)


def html_report(report: ReportResult) -> str:
    """The page.

    Args:
        report: What is known.
    """
    subject = one_line(report.message.split("\n", 1)[0], 120)
    head = join(
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta name="generator" content="rblstore {text(report.version)}">'),
        Markup('<meta name="referrer" content="no-referrer">'),
        element("title", f"{subject} ({report.commit.short}): report"),
        Markup(f"<style>{STYLESHEET}</style>"),
    )
    body = join(
        element("header", _header(report)),
        element("nav", element("ul", [element("li", element("a", name, href=f"#{id}")) for id, name in _SECTIONS]),
                aria_label="Sections"),
        element(
            "main",
            composition_section(report),
            lineage_section(report),
            verification_section(report),
            prompts_section(report),
            entropy_section(report),
            changes_section(report),
            studies_section(report),
            environments_section(report),
            ids_section(report),
            _reading(),
        ),
        element("footer", element("small", f"Made by rblstore {report.version} from the repository; no model ran. "
                                           "The same repository gives the same page, byte for byte.")),
    )  # fmt: skip
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>{body}</body>\n</html>\n'


def latest_about(report: ReportResult) -> VerificationFact | None:
    """The newest verification of the commit, else of its composition."""
    own = [one for one in report.verifications if one.commit == report.commit]
    alike = [one for one in report.verifications if one.composition == report.composition]
    return next(iter([*own, *alike]), None)


def _header(report: ReportResult) -> Markup:
    latest = latest_about(report)
    subject, _, rest = report.message.partition("\n")
    names = [join(" ", element("code", foreign(ref))) for ref in report.refs]
    return join(
        element("h1", foreign(subject.strip() or "(no message)")),
        element("p", "Report on commit ", evidence(report.commit), names, ", by ", by(report.author, report.time)),
        element("p", foreign(rest.strip(), class_="message")) if rest.strip() else Markup(""),
        _tiles(report, latest),
        element("div", element("strong", "To know: "), element("ul", [element("li", foreign(one)) for one in
                report.warnings]), class_="notice") if report.warnings else Markup(""),
        element("p", "Not everything is shown: ", ", ".join(f"{count} more {kind}" for kind, count in
                sorted(report.left_out.items())), ".") if report.left_out else Markup(""),
    )  # fmt: skip


def _tiles(report: ReportResult, latest: VerificationFact | None) -> Markup:
    behaviors = [part for part in report.parts if part.role == "behavior"]
    tiles: list[tuple[str, Markup]] = [
        ("behaviors", join(str(len(behaviors)), element("small", foreign(
            ", ".join(part.name for part in behaviors) or "the identity alone")))),
        ("verdict", join(verdict(latest.verdict if latest else "unverified"),
                         element("small", evidence(latest.id)) if latest else Markup(""))),
    ]  # fmt: skip
    if latest is not None:
        tiles += [
            ("RF, recovery fidelity", with_interval(latest.rf, latest.intervals.get("rf")) if latest.rf is not None
             else join(number(None), element("small", latest.reason or ""))),
            ("KL to the baseline, nats", with_interval(latest.kl, latest.intervals.get("kl"))),
            ("JS to the baseline, nats", with_interval(latest.js, latest.intervals.get("js"))),
            ("outputs bit-equal", Markup("yes" if latest.bit_equal else "no")),
        ]  # fmt: skip
    return element(
        "dl", [element("div", element("dt", name), element("dd", value)) for name, value in tiles], class_="tiles"
    )


def _reading() -> Markup:
    named = ("kl", "js", "rf", "entropy")
    terms = [
        join(element("dt", MEASURES[name].label), element("dd", f"{MEASURES[name].meaning} ({MEASURES[name].unit})"))
        for name in named
    ]
    more = (
        ("ILS", "the divergence on one prompt: shows local residue that a mean over prompts hides"),
        ("interval", "95 % bootstrap over prompts and, where there are several, seeds; too narrow with few"),
        ("exact", "every recorded output is the same, bit for bit"),
        ("within tolerance", "not the same bits, but KL and JS are shown to be below the tolerance"),
        ("diverged", "everything else, also where nothing could be compared"),
        ("claimed", "what somebody stated; nobody checked it"),
    )  # fmt: skip
    terms += [join(element("dt", name), element("dd", meaning)) for name, meaning in more]
    return element(
        "section",
        element("h2", "How to read this", id="reading"),
        element("dl", terms, class_="facts"),
        element("p", "A verification says what was measured: on these prompts, in this environment. It says "
                     "nothing about others."),
    )  # fmt: skip
