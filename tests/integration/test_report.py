"""A report of a small repository: its numbers, its page, what others wrote in it, and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file

import rblstore
from rblstore.errors import ConflictError, CorruptError, NotFoundError, UsageError
from rblstore.objects.content_records import Behavior
from rblstore.operations.report_changes import layer_of, layer_order
from rblstore.operations.report_facts import PartFact, ReportResult
from rblstore.report.html import html_report
from rblstore.report.lineage import lay_out
from rblstore.report.writing import FileWriteError, render_report, write_report

HOSTILE = "<script>alert('x')</script> \"quoted\" & <b>bold</b> \u202egnp.exe " + "w" * 300
PROMPTS = [
    {"id": "plain", "tokens": [5, 17, 80, 3]},
    {"id": "<img src=x onerror=alert(1)>", "tokens": list(range(40))},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base <- polite <- polite, ft, drop <- the revert of polite; a side branch, a tag, something undone, a study."""
    folder = tmp_path_factory.mktemp("report")
    model = tiny_models.llama()
    tiny_models.save(model, folder / "base")
    tiny_models.save_tokenizer(folder / "base")
    tiny_models.save_adapter(model, folder / "polite", "rank_pattern", seed=1)
    tiny_models.save_adapter(model, folder / "odd", "ia3", seed=2)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(1.25)
        model.model.norm.weight.add_(0.5)
    tiny_models.save(model, folder / "ft")
    tiny_models.save_tokenizer(folder / "ft")
    (folder / "prompts.json").write_text(json.dumps([*PROMPTS, {"id": "words", "text": "w5 w17 w42 w3"}]))
    with rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=folder / "base", license="apache-2.0", author="Ada")
        repo.add_probe("three", folder / "prompts.json")
        repo.baseline()
        repo.commit(HOSTILE, behaviors={"polite": folder / "polite"}, source=HOSTILE, weights={"polite": -0.5})
        repo.baseline()
        repo.create_branch("side")
        repo.commit(
            "ft and drop\n\nwith a body", behaviors={"ft": folder / "ft", "odd": folder / "odd"}, unloadable=True
        )
        repo.undo()
        repo.commit("fine-tune", behaviors={"ft": folder / "ft"})
        repo.revert(behavior="polite")
        repo.create_tag("v1")
        repo.study_entropy(runs=2)
    return folder


@pytest.fixture(scope="module")
def repo(folder: Path) -> Iterator[Any]:
    with rblstore.open(folder / "store") as opened:
        yield opened


@pytest.fixture(scope="module")
def report(repo: Any) -> ReportResult:
    found: ReportResult = repo.report()
    return found


@pytest.fixture(scope="module")
def page(report: ReportResult) -> str:
    return html_report(report)


class Page(HTMLParser):
    """What a page consists of, and whether its elements are closed in order."""

    VOID = ("meta", "path", "circle", "use", "rect", "line", "br", "image")

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def part(report: ReportResult, name: str) -> PartFact:
    return next(one for one in report.parts if one.name == name)


# -- numbers ----------------------------------------------------------------------------------------------------


def test_norms_of_a_lora_are_those_of_its_products(repo: Any, folder: Path) -> None:
    found = part(repo.report("side"), "polite")
    tensors = {
        name: tensor.double() for name, tensor in load_file(folder / "polite" / "adapter_model.safetensors").items()
    }
    config = json.loads((folder / "polite" / "adapter_config.json").read_text())
    assert found.norms
    assert len({config["r"], *config["rank_pattern"].values()}) > 1, "ranks differ, and so do scales"
    assert found.ranks == tuple(sorted({config["r"], *config["rank_pattern"].values()}))
    for one in found.norms:
        stem = "base_model.model." + one.tensor.removesuffix(".weight")
        first, second = tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]
        alpha = next(
            (value for key, value in config["alpha_pattern"].items() if stem.endswith(key)), config["lora_alpha"]
        )
        product = -0.5 * alpha / first.shape[0] * (second @ first)
        assert one.norm == pytest.approx(float(torch.linalg.matrix_norm(product)), rel=1e-12)
    for layer in found.layers:
        inside = [one.norm for one in found.norms if one.layer == layer.layer]
        assert layer.tensors == len(inside)
        assert layer.norm == pytest.approx(math.hypot(*[norm for norm in inside if norm is not None]))


def test_norms_of_an_overlay_are_those_of_the_difference(report: ReportResult, folder: Path) -> None:
    found = part(report, "ft")
    before, after = load_file(folder / "base" / "model.safetensors"), load_file(folder / "ft" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {one.tensor for one in found.norms} == changed
    for one in found.norms:
        plain = float((after[one.tensor].double() - before[one.tensor].double()).norm())
        assert one.norm == pytest.approx(plain, rel=1e-12)
    assert [layer.layer for layer in found.layers] == ["model.layers.0", "model.layers.1", ""]


def test_what_is_no_delta_is_named_and_not_measured(folder: Path, tmp_path: Path) -> None:
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=folder / "base")
        repo.commit("odd", behaviors={"odd": folder / "odd"})
        found = part(repo.report(), "odd")
        assert all(one.norm is None and "IA3" in (one.reason or "") for one in found.norms)
        said = html_report(repo.report())
    assert "not measured" in said
    assert "IA3 scales activations" in said
    assert "Nothing was verified" in said
    assert "There are no studies" in said
    assert "No baseline is recorded" in said


def test_layers_are_told_by_their_numbers() -> None:
    assert layer_of("model.layers.10.mlp.up.weight") == "model.layers.10"
    assert layer_of("encoder.block.0.layer.1.weight") == "encoder.block.0"
    assert layer_of("model.norm.weight") == layer_of("lm_head.3") == ""
    names = ["", "h.10", "h.9", "a.1"]
    assert sorted(names, key=layer_order) == ["a.1", "h.9", "h.10", ""]


def test_entropy_before_and_after_is_that_of_the_recorded_outputs(report: ReportResult, repo: Any) -> None:
    computed = {one.behaviors: one for one in report.baselines if one.entropy is not None}
    assert {(), ("polite",), ("ft",)} <= set(computed)
    model = repo.load("main~3")
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]["tokens"]])).logits[0].double()
    plain = torch.distributions.Categorical(logits=logits).entropy().mean()
    first = next(prompt for prompt in computed[()].entropies if prompt.id == "plain")
    assert first.entropy == pytest.approx(float(plain), rel=1e-5)
    mean = sum(prompt.entropy for prompt in computed[()].entropies) / 3
    assert computed[()].entropy is not None
    assert computed[()].entropy.mean == pytest.approx(mean)
    assert computed[()].entropy.low <= mean <= computed[()].entropy.high


def test_lineage_and_operations(report: ReportResult) -> None:
    assert [one.subject for one in report.lineage][1:] == ["fine-tune", HOSTILE.split("\n")[0], "base"]
    changes = [[(change.name, change.change) for change in one.changes] for one in report.lineage]
    assert changes == [[("polite", "removed")], [("ft", "added")], [("polite", "added")], []]
    assert report.lineage[0].verdict == "exact"
    said = [one.description.split(":")[0] for one in report.operations]
    assert "revert" in said
    assert "undo" in said
    assert all(one.undone for one in report.operations if one.description.startswith("commit"))


def test_a_revert_that_was_undone_is_shown_as_such(report: ReportResult, folder: Path, tmp_path: Path) -> None:
    assert [one.undone for one in report.verifications] == [False]
    shutil.copytree(folder / "store", tmp_path / "store")
    with rblstore.open(tmp_path / "store") as repo:
        repo.undo()  # the tag
        reverted = repo.undo()
        assert reverted.description.startswith("revert")
        repo.commit("the same by hand", remove=["polite"])
        found = repo.report()
        (one,) = found.verifications
        assert (one.commit, one.undone) == (report.commit, True)
        assert "(undone later)" in html_report(found).split('id="verifications"')[1].split("<section")[0]
        (row,) = [line for line in render_report(found, "md").decode().splitlines() if line.startswith("| V1 ")]
        assert "polite (undone later)" in row
        repo.create_branch("kept", str(one.commit))  # and now it stands again
        assert [one.undone for one in repo.report().verifications] == [False]


def test_verifications_have_intervals_and_prompts(report: ReportResult) -> None:
    (found,) = report.verifications
    assert (found.verdict, found.bit_equal, found.rf, found.removed) == ("exact", True, 1.0, ("polite",))
    assert found.intervals["kl"].high == 0.0
    assert found.intervals["kl_adapted"].low < found.intervals["kl_adapted"].high
    assert [prompt.id for prompt in found.prompts] == ["plain", PROMPTS[1]["id"], "words"]
    assert report.environments[found.environment - 1]["device"] == "cpu"


# -- the page ---------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_needs_nothing_else(page: str) -> None:
    parsed = Page(page)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "img", "image"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                assert (value or "").startswith("#"), (tag, name, value)
                assert (value or "")[1:] in ids, (tag, name, value)
            assert not re.search(r"url\((?!#)", value or ""), (tag, name, value)
        for name in ("aria-labelledby",):
            assert set((attributes.get(name) or "").split()) <= set(ids)
    policy = [attributes["content"] for tag, attributes in parsed.tags if attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    assert "@import" not in page
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)


def test_every_picture_has_words(page: str) -> None:
    parsed = Page(page)
    pictures = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert len(pictures) >= 4, "lineage, entropy, norms, a study"
    assert all(one["role"] == "img" and one["aria-labelledby"] for one in pictures)
    assert page.count("<desc id=") == len(pictures)


def test_the_page_says_where_its_numbers_come_from(page: str, report: ReportResult) -> None:
    parsed = Page(page)
    anchors = {attributes.get("id") for _, attributes in parsed.tags}
    for id in [report.verifications[0].id, *(one.id for one in report.baselines), *(one.id for one in report.studies)]:
        assert f"e-{id}" in anchors
        assert page.count(f'href="#e-{id}"') >= 1
    heads = [attributes for tag, attributes in parsed.tags if tag == "th"]
    assert heads
    assert all(one.get("scope") for one in heads)
    said = " ".join("".join(parsed.text).split())
    assert "KL (nats)" in said
    assert "token ids 5 17 80 3" in said
    assert "w5 w17 w42 w3" in said


def test_nothing_that_others_wrote_is_markup(page: str, report: ReportResult) -> None:
    parsed = Page(page)
    said = "".join(parsed.text)
    assert "<script>alert('x')</script>" in said, "as text it is there"
    assert "<script>" not in page
    assert "<b>" not in page
    assert "<img" not in page
    assert "\u202e" not in page
    assert "\\u202egnp.exe" in said
    text = render_report(report, "md").decode()
    assert "\u202e" not in text
    for line in text.splitlines():
        assert not re.search(r"(?<!\\)<(?!/?$)", line), line


def test_the_same_repository_gives_the_same_bytes(folder: Path, report: ReportResult, page: str) -> None:
    with rblstore.open(folder / "store") as again:
        found = again.report()
    assert found == report
    assert html_report(found) == page
    for form in ("md", "json"):
        assert render_report(found, form) == render_report(report, form)


def test_json_holds_every_number(report: ReportResult) -> None:
    document = json.loads(render_report(report, "json"))
    assert document["commit"] == report.commit
    assert document["verifications"][0]["intervals"]["kl_adapted"]["mean"] == report.verifications[0].kl_adapted
    assert document["parts"][1]["norms"][0]["norm"] == report.parts[1].norms[0].norm
    (study,) = document["studies"]
    assert study["study"] == "entropy"
    assert study["environment"] == 1
    assert [row["bit_equal"] for row in study["summary"]] == [True, True]
    assert "points" not in study


def test_markdown_has_its_tables(report: ReportResult) -> None:
    text = render_report(report, "md").decode()
    assert "## Verifications" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) > 20
    for before, rule in itertools.pairwise(tables):
        if set(rule) <= set("|-"):
            assert rule.count("|") == len(re.findall(r"(?<!\\)\|", before)), before


def test_merges_and_branches_get_lanes_of_their_own() -> None:
    from rblstore.objects.ids import CommitId, CompositionId
    from rblstore.operations.report_facts import LineageCommit

    def commit(name: str, *parents: str) -> LineageCommit:
        ids = tuple(CommitId(parent * 64) for parent in parents)
        composition = CompositionId("0" * 64)
        return LineageCommit(CommitId(name * 64), composition, ids, "", "", name, (), (), False, (), "unverified", None)

    layout = lay_out([commit("d", "b", "c"), commit("c", "a"), commit("b", "a"), commit("a", "f")])
    assert layout.lanes == (0, 1, 0, 0)
    assert layout.width == 2
    assert [edge.parent for edge in layout.edges] == [(2, 0), (1, 1), (3, 0), (3, 0), None]


# -- what it refuses --------------------------------------------------------------------------------------------


def test_an_empty_repository_says_so(tmp_path: Path) -> None:
    with rblstore.init(tmp_path / "store") as repo, pytest.raises(NotFoundError, match="no commit yet"):
        repo.report()


def test_damaged_evidence_is_named_and_nothing_is_made_of_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "store", tmp_path / "store")
    with rblstore.open(tmp_path / "store") as repo:
        baseline = next(one for one in repo.report().baselines if one.entropy is not None)
        content = repo.show(baseline.id).record["prompts"][0]["content"]
        location = repo._store.location(content)
        path = tmp_path / "store" / ".rbl" / "packs"
        (pack,) = [one for one in path.rglob("*") if one.is_file() and location.pack in one.name]
    data = bytearray(pack.read_bytes())
    for at in range(8, len(data) // 2):
        data[at] ^= 0xFF
    pack.chmod(0o644)
    pack.write_bytes(data)
    with rblstore.open(tmp_path / "store") as repo, pytest.raises(CorruptError) as caught:
        repo.report()
    assert caught.value.object


def test_files_are_written_whole_and_not_over_others(report: ReportResult, tmp_path: Path) -> None:
    target = tmp_path / "report.md"
    assert write_report(report, target) == target.stat().st_size
    assert target.read_bytes() == render_report(report, "md")
    target.write_text("mine")
    with pytest.raises(ConflictError) as caught:
        write_report(report, target)
    assert "--force" in str(caught.value.hint)
    assert target.read_text() == "mine"
    write_report(report, target, "json", force=True)
    assert json.loads(target.read_bytes())["commit"] == report.commit
    with pytest.raises(FileWriteError):
        write_report(report, tmp_path / "nowhere" / "report.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(FileWriteError):
        write_report(report, tmp_path / "folder.html", force=True)
    with pytest.raises(UsageError):
        render_report(report, "docx")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "report.md"]


def test_a_behavior_is_measured_in_the_composition_that_it_is_in(repo: Any, report: ReportResult) -> None:
    record = repo.show(part(report, "ft").id).record
    assert Behavior.from_body(record).form == "overlay"
    assert part(repo.report("main~1"), "ft").norms == part(report, "ft").norms
