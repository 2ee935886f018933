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
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_pages import (
    Rows,
    behaviors_table,
    elimination_table,
    entropy_table,
    environment_table,
    impossible,
    mechanisms_table,
    mutation_table,
    scale_table,
    svar_table,
)

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


# -- the run ------------------------------------------------------------------------------------------------------


def small_model(folder: Path) -> dict[str, Any]:
    """A language model made on the spot, a LoRA and a full fine-tune of it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rblstore.report.demo_models import code, english, make_model, train, with_lora

    # Its products are so small that threads would only wait for one another.
    torch.set_num_threads(1)
    base = folder / "model"
    print("making a small language model, a LoRA and a full fine-tune ...")
    make_model(base, steps=30, rows=8)
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
        self.studies: dict[str, Rows] = {}

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
        self.studies[name] = rows
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
        form = "overlay" if name in overlays else "adapter"
        result = kept(repo, "elimination", name, form=form) or timed(repo.study_elimination, name, behavior=name)
        page.add(f"elimination-{name}", result, elimination_table)
    for name in adapters[:1]:
        # The product of its factors, where the study before looks at the factors.
        result = kept(repo, "elimination", name, form="merged") or timed(
            repo.study_elimination, name, behavior=name, form="merged"
        )
        page.add(f"elimination-{name}-merged", result, elimination_table)
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


def kept(repo: Any, study: str, revision: str, **parameters: str) -> Any:
    """The latest study of its kind about a commit, with these parameters, or None."""
    found = [one for one in repo.studies(revision) if one.study == study and one.commits[0] == repo.resolve(revision)]
    results = (repo.study(one.id) for one in reversed(found))
    return next((one for one in results if parameters.items() <= one.record.parameters.items()), None)


def timed(study: Any, *arguments: Any, **options: Any) -> Any:
    """Runs a study and says how long it took."""
    began = time.monotonic()
    result = study(*arguments, **options)
    print(f"{study.__name__} {arguments[0]}: {time.monotonic() - began:.0f} s", flush=True)
    return result


def put_into(page: Path, sections: dict[str, str], figures: Path) -> None:
    """Replaces what stands between the markers of a page, and puts the figures into ``figures/`` beside it."""
    text = page.read_text(encoding="utf-8")
    for name, section in sections.items():
        begin = f"<!-- paper_tables: {name} -->\n"
        if begin not in text:
            continue
        for figure in re.findall(r"!\[.*?\]\((.*?\.svg)\)", section):
            (page.parent / "figures").mkdir(exist_ok=True)
            shutil.copyfile(figures / figure, page.parent / "figures" / figure)
        section = re.sub(r"!\[(.*?)\]\((.*?\.svg)\)", r"![\1](figures/\2)", section)
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
    behaviors = [*sources["adapters"], *sources["overlays"]]
    page.sections["behaviors"] = behaviors_table(page.studies, behaviors)
    page.sections["environment"] = environment_table(page.studies["mutation"], said)
    body = "\n\n".join(f"## {name.capitalize()}\n\n{section}" for name, section in page.sections.items())
    (out / "paper.md").write_text(f"# arXiv 2603.02934, measured\n\n{body}\n", encoding="utf-8")
    if arguments.page is not None:
        put_into(arguments.page, page.sections, out)
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        main(options, options.out or Path(folder) / "paper", Path(folder), sys.argv[1:])
