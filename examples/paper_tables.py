"""Every table and figure of arXiv 2603.02934 on one model, ours beside the published; offline, in two minutes.

Run it as it stands, on a small model that it trains first:

    python examples/paper_tables.py --out paper/

or on a model of your own, with adapters and a full fine-tune of it:

    python examples/paper_tables.py --model DIR --adapter NAME=DIR --overlay NAME=DIR --prompts FILE --out paper/

It writes ``paper.md`` and figures (SVG) into the folder. ``--page FILE`` also puts the tables between the markers of a
page of your own: ``<!-- paper_tables: mutation -->`` up to ``<!-- end -->``. Every number comes from studies that are
kept in the repository (``--store``), as evidence; run again with the same store, the script takes what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import rblstore

PROMPTS = [
    "The value of the expression is",
    "def read(self, path):",
    "An exception is raised when",
    "The import statement binds a name",
    "class Store(object):",
    "If the object has a method",
    "A function call always passes",
    "for name in sorted(names):",
    "The operator yields the",
    "When a key is not found",
]
# What is trained on, and distilled on: nothing of it is measured.
TRAINING = [
    "A list of the names that the module defines is returned by the function below.",
    "The second argument may be omitted, in which case the whole file is read at once.",
    "It is an error to call the method again after the iterator was closed by its owner.",
    "Numbers are compared by their mathematical values, whatever their types may be.",
    "Every class has a list of its bases, in the order in which they were written down.",
    "The message is printed to the standard error stream, and the program then exits.",
    "While the lock is held, no other thread can change the dictionary of the module.",
    "A string that begins with the prefix is split into parts at each of the commas.",
    "The result has the same type as the operand unless one of them is a complex number.",
    "Both arguments are evaluated from left to right before the operation is carried out.",
]

# The published figures. Elimination: exact from 0.6 up; two of its entries are given by their values alone.
PUBLISHED_MUTATION = {
    0.001: {"1.5B": (0.169, 0.031), "3B": (0.355, 0.049)},
    0.01: {"1.5B": (6.347, 0.574), "3B": (8.780, 0.655)},
    0.05: {"1.5B": (14.747, 0.688), "3B": (15.581, 0.691)},
}
PUBLISHED_EXACT_FROM = 0.6
PUBLISHED_ELIMINATION = ((None, 9.63), (0.339, 0.665))
PUBLISHED_RF = {"unstructured": 0.0, "structured": 0.0, "reversible": 1.0}
PUBLISHED_ENTROPY = (0.245, 0.234, 0.261, 0.252)
PUBLISHED_SCALE = {"reversible": (100, 100, 100), "unstructured": (30, 40, 10)}

LN2 = math.log(2)


def impossible(kl: float | None, js: float | None) -> str | None:
    """Which bound a pair of mean divergences breaks, or None.

    JS is at most ln 2, and at most (ln 2 / 2) KL: both are sums over tokens of p times a function of q / p, and the
    ratio of the two functions grows with q / p, up to ln 2 / 2. Both hold for every position, and so for means.
    """
    if js is not None and js > LN2 * (1 + 1e-12):
        return f"JS {js:g} > ln 2 = {LN2:.3f}"
    if js is not None and kl is not None and js > LN2 / 2 * kl * (1 + 1e-9) + 1e-12:
        return f"JS {js:g} > (ln 2 / 2) KL = {LN2 / 2 * kl:.3g}"
    return None


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; an exact zero is told from a small number."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.{digits}g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.{digits - 1}e}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Rows:
    """A study's summary: one row a condition, each measure a mean with its interval."""

    def __init__(self, result: Any) -> None:
        document = result.as_json()
        self.id = document["id"]
        self.environment = document["environment"]
        self.parameters = document["parameters"]
        self.record = result.record
        self.rows = document["summary"]

    def where(self, **wanted: Any) -> list[dict[str, Any]]:
        """The rows whose condition says so."""
        return [row for row in self.rows if all(row["condition"].get(key) == one for key, one in wanted.items())]

    def one(self, **wanted: Any) -> dict[str, Any] | None:
        """The only such row, or None."""
        found = self.where(**wanted)
        return found[0] if found else None


def mean(row: dict[str, Any] | None, name: str) -> float | None:
    """The mean of a measure in a row."""
    found = None if row is None else row["measures"].get(name)
    return None if found is None else found["mean"]


def told(row: dict[str, Any] | None, name: str) -> str:
    """A mean with its 95 % interval, for a table."""
    found = None if row is None else row["measures"].get(name)
    if found is None or found["mean"] is None:
        return "–"
    if found["low"] is None or found["low"] == found["high"]:
        return number(found["mean"])
    return f"{number(found['mean'])} ({number(found['low'])} to {number(found['high'])})"


def equal(row: dict[str, Any]) -> str:
    """Whether outputs are the reference's, bit for bit."""
    return "**yes**" if row["bit_equal"] else "no"


def restored(row: dict[str, Any] | None) -> tuple[str, str]:
    """RF and bit equality of a restored state."""
    return ("–", "–") if row is None else (number(mean(row, "rf")), equal(row))


def published_pair(kl: float | None, js: float | None) -> str:
    """A published KL and JS, marked where they cannot be."""
    why = impossible(kl, js)
    pair = f"{'?' if kl is None else kl:} / {js:}"
    return pair if why is None else f"~~{pair}~~ impossible: {why}"


def elimination_table(result: Rows) -> str:
    """Fig. 1 and Table 1."""
    lines = []
    for row in result.rows:
        fraction = row["condition"]["epsilon"]
        exact = "< 1e-6" if fraction >= PUBLISHED_EXACT_FROM else "partial"
        lines.append((f"{fraction:g}", told(row, "kl"), told(row, "js"), equal(row), exact))
    header = ("ε", "KL, nats (95 %)", "JS, nats (95 %)", "bit-equal", "published")
    wrong = "; ".join(published_pair(*pair) for pair in PUBLISHED_ELIMINATION)
    return f"{table(header, lines)}\n\nAmong the published entries (KL / JS): {wrong}."


def mutation_table(result: Rows) -> str:
    """Fig. 2 and Table 2."""
    lines = []
    for row in result.where(reset="none"):
        alpha = row["condition"]["alpha"]
        published = PUBLISHED_MUTATION.get(alpha, {})
        pairs = [published_pair(*published[size]) if size in published else "–" for size in ("1.5B", "3B")]
        stored = result.one(alpha=alpha, reset="store")
        lines.append(
            (f"{alpha:g}", told(row, "kl"), told(row, "js"), number(mean(row, "rf")), *restored(stored), *pairs)
        )
    header = (
        "α", "KL, nats (95 %)", "JS, nats (95 %)", "RF", "RF by the store", "bit-equal then",
        "1.5B published: KL / JS", "3B published: KL / JS",
    )  # fmt: skip
    return table(header, lines)


def mechanisms_table(result: Rows) -> str:
    """Table 3, and every way back."""
    lines = []
    for row in result.rows:
        condition = row["condition"]
        name = condition["mechanism"] + (f" `{condition['behavior']}`" if condition.get("behavior") else "")
        published = PUBLISHED_RF.get(condition["mechanism"])
        told_there = condition["reset"] in ("none", "unload") and published is not None
        if condition["mechanism"] == "reversible" and condition["reset"] == "none":
            told_there = False
        lines.append(
            (
                name,
                condition["reset"],
                told(row, "kl"),
                told(row, "js"),
                told(row, "rf"),
                number(mean(row, "ils_max")),
                equal(row),
                f"RF {published:g}" if told_there else "–",
            )
        )
    header = ("mechanism", "reset", "KL, nats", "JS, nats", "RF", "largest ILS", "bit-equal", "published")
    return table(header, lines)


def entropy_table(result: Rows) -> str:
    """Fig. 3 and Table 4."""
    lines = []
    for place, row in enumerate(result.rows):
        published = f"{PUBLISHED_ENTROPY[place]:g}" if place < len(PUBLISHED_ENTROPY) else "–"
        lines.append((str(place + 1), told(row, "entropy"), equal(row), published))
    return table(("run", "mean entropy, nats (95 %)", "bit-equal to the first", "published"), lines)


def svar_table(result: Rows) -> str:
    """SVAR and its four perturbations, for which nothing was published."""
    lines = []
    for row in result.rows:
        name = " ".join(str(value) for value in row["condition"].values() if value is not None)
        lines.append((name, told(row, "kl"), told(row, "js"), equal(row)))
    return table(("perturbation", "KL, nats", "JS, nats", "bit-equal"), lines)


def scale_table(result: Rows) -> str:
    """Fig. 4 and Table 5."""
    lines = []
    for identity in dict.fromkeys(row["condition"]["identity"] for row in result.rows):
        for mechanism in dict.fromkeys(row["condition"]["mechanism"] for row in result.where(identity=identity)):
            rows = result.where(identity=identity, mechanism=mechanism)
            without = [row for row in rows if row["condition"]["reset"] not in ("none", "store", "unload")]
            best = max(without, key=fidelity, default=None)
            exact = next((row for row in rows if row["condition"]["reset"] in ("store", "unload")), None)
            nothing = next((row for row in rows if row["condition"]["reset"] == "none"), None)
            published = PUBLISHED_SCALE.get(mechanism)
            size = mean(rows[0], "parameters")
            lines.append(
                (
                    f"{identity} ({0 if size is None else size / 1e6:.1f} M)",
                    mechanism,
                    percent(nothing),
                    "–" if best is None else f"{percent(best)} ({best['condition']['reset']})",
                    percent(exact),
                    "–" if published is None else " / ".join(f"{one} %" for one in published),
                    number(sum(mean(row, "seconds") or 0.0 for row in rows) / len(rows)),
                )
            )
    header = (
        "identity", "mechanism", "no reset", "best reset without the store", "by the store",
        "published (1.5B / 3B / 7B)", "seconds a state",
    )  # fmt: skip
    return table(header, lines)


def fidelity(row: dict[str, Any]) -> float:
    """RF of a row, the least of all where it is undefined."""
    found = mean(row, "rf")
    return -math.inf if found is None else found


def percent(row: dict[str, Any] | None) -> str:
    """100 RF, never clamped."""
    found = mean(row, "rf")
    return "–" if found is None else f"{100 * found:.4g} %"


def environment_table(result: Rows, arguments: Sequence[str]) -> str:
    """Where all of it was measured."""
    names = ("device", "dtype", "threads", "machine", "cpu_capability", "torch", "transformers", "peft", "attention")
    lines = [(name, f"`{result.environment[name]}`") for name in names if name in result.environment]
    command = "python examples/paper_tables.py " + " ".join(arguments)
    return f"```\n{command}\n```\n\n{table(('what', 'value'), [('rblstore', f'`{rblstore.__version__}`'), *lines])}"


# -- the run ------------------------------------------------------------------------------------------------------


def small_model(folder: Path) -> dict[str, Any]:
    """A language model made on the spot, a LoRA and a full fine-tune of it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rblstore.report.demo_models import code, english, make_model, train, with_lora

    base = folder / "model"
    print("making a small language model, a LoRA and a full fine-tune ...")
    make_model(base, steps=40, rows=8)
    tokenizer = AutoTokenizer.from_pretrained(base)
    lora = with_lora(AutoModelForCausalLM.from_pretrained(base))
    train(lora, tokenizer, code(), steps=10, learning_rate=3e-3, rows=4)
    tuned = AutoModelForCausalLM.from_pretrained(base)
    train(tuned, tokenizer, english()[:20_000], steps=10, learning_rate=5e-4, rows=4)
    return {"model": base, "adapters": {"code": lora}, "overlays": {"terse": tuned}}


def committed(store: Path, sources: dict[str, Any], prompts: Any, training: Any, scale: Sequence[Path]) -> Any:
    """A repository with the model, each behavior on a branch of its own, and two probes; what it has already stays."""
    new = not (store / ".rbl").is_dir()
    repo = rblstore.init(store) if new else rblstore.open(store)
    if new:
        repo.commit("identity", identity=sources["model"])
        repo.add_probe("prompts", prompts, default=True)
        repo.add_probe("training", training)
    branches = {branch.name for branch in repo.branches()}
    for name, source in {**sources["adapters"], **sources["overlays"]}.items():
        if name not in branches:
            repo.create_branch(name, "main")
            repo.commit(name, behaviors={name: source}, branch=name)
    for place, other in enumerate(scale, 2):
        if f"identity-{place}" not in branches:
            repo.switch(f"identity-{place}", orphan=True)
            repo.commit("identity", identity=other)
            repo.add_probe(f"prompts-{place}", prompts)
            repo.add_probe(f"training-{place}", training)
            repo.switch("main")
    return repo


class Page:
    """What was measured, section by section, and its figures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sections: dict[str, str] = {}
        self.studies: list[Rows] = []

    def add(self, name: str, result: Any, draw: Any) -> Rows:
        """A study's table, figure and evidence."""
        rows = Rows(result)
        check(rows)
        figure = self.folder / f"{name}.svg"
        try:
            from rblstore.report.study_plots import plot_study
        except ImportError as missing:
            picture = f"No figure: {missing}."
        else:
            plot_study(rows.record, figure, "svg")
            picture = f"![{name}]({figure.name})"
        self.sections[name] = f"{draw(rows)}\n\n{picture}\n\nEvidence: study `{rows.id[:12]}`."
        self.studies.append(rows)
        return rows


def check(rows: Rows) -> None:
    """Holds our own numbers to the bounds that the published ones break."""
    for point in rows.record.points:
        for prompt in point.prompts:
            kl, js = prompt.values.get("kl"), prompt.values.get("js")
            broken = impossible(kl, js)
            assert broken is None, f"study {rows.id}: prompt {prompt.id}: {broken}"


def measured(repo: Any, page: Page, adapters: Sequence[str], overlays: Sequence[str], seeds: int, scale: int) -> None:
    """All the studies; one that the repository has already is taken as it is."""
    behaviors = [*adapters, *overlays]
    for name in behaviors:
        result = kept(repo, "elimination", name) or timed(repo.study_elimination, name, behavior=name)
        page.add(f"elimination-{name}", result, elimination_table)
    for name in (*adapters[:1], *overlays[:1]):
        result = kept(repo, "svar", name) or timed(repo.study_svar, name, behavior=name, seeds=seeds)
        page.add(f"svar-{name}", result, svar_table)
    page.add(
        "mutation", kept(repo, "mutation", "main") or timed(repo.study_mutation, "main", seeds=seeds), mutation_table
    )
    page.add("entropy", kept(repo, "entropy", "main") or timed(repo.study_entropy, "main", runs=5), entropy_table)
    # Noise and fine-tuning are the same on every branch: once is enough.
    for name in behaviors:
        mechanisms = None if name == behaviors[0] else ["overlay"] if name in overlays else ["reversible"]
        result = kept(repo, "mechanisms", name) or timed(
            repo.study_mechanisms, name, training="training", mechanisms=mechanisms, seeds=seeds
        )
        page.add(f"mechanisms-{name}", result, mechanisms_table)
    others = [f"-{place}" for place in range(2, scale + 2)]
    names = ["main", *(f"identity{other}" for other in others)]
    result = kept(repo, "scale", "main") or timed(
        repo.study_scale,
        names,
        probes=["prompts", *(f"prompts{other}" for other in others)],
        training=["training", *(f"training{other}" for other in others)],
        resets=["distillation", "store"],
        seeds=seeds,
    )
    page.add("scale", result, scale_table)


def kept(repo: Any, study: str, revision: str) -> Any:
    """The latest study of its kind about a commit, or None."""
    found = [one for one in repo.studies(revision) if one.study == study and one.commits[0] == repo.resolve(revision)]
    return repo.study(found[-1].id) if found else None


def timed(study: Any, *arguments: Any, **options: Any) -> Any:
    """Runs a study and says how long it took."""
    began = time.monotonic()
    result = study(*arguments, **options)
    print(f"{study.__name__} {arguments[0]}: {time.monotonic() - began:.0f} s", flush=True)
    return result


def put_into(page: Path, sections: dict[str, str], figures: str) -> None:
    """Replaces what stands between the markers of a page."""
    text = page.read_text(encoding="utf-8")
    for name, section in sections.items():
        begin = f"<!-- paper_tables: {name} -->\n"
        section = re.sub(r"!\[(.*?)\]\((.*?\.svg)\)", rf"![\1]({figures}/\2)", section)
        pattern = re.compile(re.escape(begin) + r".*?<!-- end -->", re.DOTALL)
        text = pattern.sub(lambda _, begin=begin, section=section: f"{begin}\n{section}\n\n<!-- end -->", text)
    page.write_text(text, encoding="utf-8")


def named(values: Sequence[str]) -> dict[str, Path]:
    """NAME=DIR options."""
    return {name: Path(path) for name, _, path in (value.partition("=") for value in values)}


def main(arguments: argparse.Namespace, out: Path, work: Path, said: Sequence[str]) -> None:
    """Prepares, measures and writes."""
    if arguments.model is None:
        sources = small_model(work)
    else:
        adapters, overlays = named(arguments.adapter), named(arguments.overlay)
        sources = {"model": arguments.model, "adapters": adapters, "overlays": overlays}
    prompts, training = (
        default if given is None else json.loads(given.read_text(encoding="utf-8"))
        for given, default in ((arguments.prompts, PROMPTS), (arguments.training, TRAINING))
    )
    out.mkdir(parents=True, exist_ok=True)
    page = Page(out)
    store = arguments.store or work / "store"
    with committed(store, sources, prompts, training, arguments.scale) as repo:
        measured(
            repo, page, list(sources["adapters"]), list(sources["overlays"]), arguments.seeds, len(arguments.scale)
        )
    page.sections["environment"] = environment_table(page.studies[0], said)
    body = "\n\n".join(f"## {name.capitalize()}\n\n{section}" for name, section in page.sections.items())
    (out / "paper.md").write_text(f"# arXiv 2603.02934, measured\n\n{body}\n", encoding="utf-8")
    if arguments.page is not None:
        put_into(arguments.page, page.sections, arguments.figures)
    print("wrote", out / "paper.md")


if __name__ == "__main__":
    import sys

    parser = argparse.ArgumentParser(description="The tables and figures of arXiv 2603.02934 on one model.")
    parser.add_argument("--model", type=Path, help="a checkpoint's directory; a small model is made without it")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR", help="an adapter of it")
    parser.add_argument("--overlay", action="append", default=[], metavar="NAME=DIR", help="a full fine-tune of it")
    parser.add_argument("--scale", action="append", default=[], type=Path, metavar="DIR", help="another identity")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a JSON list of prompts that are measured")
    parser.add_argument("--training", type=Path, metavar="FILE", help="a JSON list of prompts that are trained on")
    parser.add_argument("--seeds", type=int, default=3, help="how many (3)")
    parser.add_argument("--store", type=Path, metavar="DIR", help="where the repository is kept")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where tables and figures are written")
    parser.add_argument("--page", type=Path, metavar="FILE", help="a page between whose markers tables are put")
    parser.add_argument("--figures", default="figures", help="where that page finds the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        main(options, options.out or Path(folder) / "paper", Path(folder), sys.argv[1:])
