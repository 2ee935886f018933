"""Mechanisms and scale on tiny models: what comes back by the store is exact, and nothing else is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from live_stories import Story

from rblstore.divergence.adaptations import UntrainableModelError
from rblstore.errors import ConflictError, NotFoundError, UsageError
from rblstore.operations.mechanism_rows import MECHANISMS, RESETS
from rblstore.operations.study_mechanisms import NoMechanismError

BACK = ("unload", "store")
QUICK = {"steps": 2, "learning_rate": 1e-3, "layers": 1, "alpha": 0.02}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Adapters, an overlay and two probes."""
    made = Story(tmp_path_factory.mktemp("mechanisms"))
    prompts = [{"id": f"p{place}", "tokens": [5 + place, 17, 80 - place, 3, 42]} for place in range(3)]
    others = [{"id": f"t{place}", "tokens": [7, 9 + place, 1, 90 - place, 33, 2]} for place in range(3)]
    made.repo.add_probe("measured", prompts, revision=made.commits["base"], default=True)
    made.repo.add_probe("trained", others, revision=made.commits["base"])
    yield made
    made.repo.close()


@pytest.fixture(scope="module")
def found(story: Story) -> Any:
    """A study of everything."""
    return story.repo.study_mechanisms(
        story.commits["abf"], behaviors=["a", "ft"], training="trained", seeds=2, **QUICK
    )


def points(result: Any, **wanted: Any) -> list[Any]:
    return [
        point
        for point in result.record.points
        if all(point.condition.get(name) == value for name, value in wanted.items())
    ]


def mean(point: Any, name: str) -> float:
    values = [prompt.values[name] for prompt in point.prompts]
    return math.fsum(values) / len(values)


def test_every_mechanism_with_every_reset_that_applies(found: Any, story: Story) -> None:
    rows = {(one.condition["mechanism"], one.condition["reset"]) for one in found.record.points}
    assert rows == {
        *(("unstructured", reset) for reset in ("none", *RESETS)),
        *(("structured", reset) for reset in ("none", *RESETS)),
        ("reversible", "none"),
        ("reversible", "unload"),
        *(("overlay", reset) for reset in ("none", "eight_bit", "distillation", "store")),
    }
    assert len(found.record.points) == 2 * len(rows)
    assert {one.seed for one in found.record.points} == {0, 1}
    assert len(found.record.probes) == 2
    assert found.record.parameters["training"] == "trained"


def test_by_the_store_it_is_exact(found: Any) -> None:
    exact = [point for point in found.record.points if point.condition["reset"] in BACK]
    assert {point.condition["mechanism"] for point in exact} == set(MECHANISMS)
    for point in exact:
        assert point.bit_equal is True
        assert point.values["rf"] == 1.0
        assert point.values["ils_flagged"] == 0
        assert {mean(point, name) for name in ("kl", "js")} == {0.0}


def test_without_the_store_it_is_what_was_measured(found: Any) -> None:
    """No reset is asserted to be bad: each says the RF that its own divergences give."""
    adapted = {(point.condition["mechanism"], point.seed): mean(point, "kl") for point in points(found, reset="none")}
    rest = [point for point in found.record.points if point.condition["reset"] not in BACK]
    fidelities = set()
    for point in rest:
        before = adapted[point.condition["mechanism"], point.seed]
        assert point.bit_equal is False
        assert mean(point, "kl") > 0
        assert 0 < mean(point, "js") <= min(math.log(2), mean(point, "kl") / 2 + 1e-15)
        assert point.values["kl_adapted"] == pytest.approx(before, rel=1e-12)
        assert point.values["rf"] == pytest.approx(1 - mean(point, "kl") / before, rel=1e-9, abs=1e-12)
        assert point.values["ils_max"] == max(prompt.values["kl"] for prompt in point.prompts)
        fidelities.add(point.values["rf"])
    assert all(point.values["rf"] == 0 for point in points(found, reset="none"))
    # The same noise again makes it worse, an 8-bit copy far better: neither is clamped nor assumed.
    assert all(point.values["rf"] < 0 for point in points(found, mechanism="unstructured", reset="estimated_delta"))
    assert all(0.9 < point.values["rf"] < 1 for point in points(found, reset="eight_bit"))
    assert len(fidelities) > 10


def test_seeds_draw_other_numbers(found: Any) -> None:
    for mechanism in ("unstructured", "structured"):
        first, second = points(found, mechanism=mechanism, reset="none")
        assert mean(first, "kl") != mean(second, "kl")


def test_nothing_of_it_stays_in_the_repository(found: Any, story: Story) -> None:
    assert story.repo.fsck(full=True).ok
    assert [branch.name for branch in story.repo.branches()] == ["main"]
    assert story.repo.verify(story.commits["base"], against=story.commits["base"]).verdict == "exact"


def test_resets_never_read_what_is_stored(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between adapting and measuring nothing but the store's own condition puts tensors back."""
    from rblstore.divergence import adaptations, resets
    from rblstore.operations.study_model import StudyModel

    events: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            events.append(name)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(StudyModel, "restore", noted("restore", StudyModel.restore))
    monkeypatch.setattr(StudyModel, "measured", noted("measured", StudyModel.measured))
    monkeypatch.setattr(adaptations, "fine_tune", noted("adapt", adaptations.fine_tune))
    monkeypatch.setattr(adaptations, "distil", noted("distil", adaptations.distil))
    monkeypatch.setattr(resets, "pull_back", noted("pull_back", resets.pull_back))
    monkeypatch.setattr(resets.EightBitCopy, "put", noted("put", resets.EightBitCopy.put))
    story.repo.study_mechanisms(story.commits["base"], mechanisms=["structured"], seeds=1, **QUICK)
    spans = [span.split() for span in " ".join(events).split("measured")]
    assert [span[-2:] for span in spans if span] == [
        ["restore", "adapt"],
        ["restore", "pull_back"],
        ["restore", "put"],
        ["restore", "adapt"],
        ["restore", "distil"],
        ["restore", "restore"],
    ]


def test_an_adapter_is_made_on_the_spot_where_there_is_none(story: Story) -> None:
    result = story.repo.study_mechanisms(
        story.commits["base"], mechanisms=["reversible"], training="trained", seeds=2, **QUICK
    )
    adapted, unloaded = points(result, reset="none"), points(result, reset="unload")
    assert len(adapted) == len(unloaded) == 2
    assert mean(adapted[0], "kl") != mean(adapted[1], "kl")
    assert all(mean(point, "kl") > 1e-9 and point.bit_equal is False for point in adapted)
    assert all(point.bit_equal and point.values["rf"] == 1.0 for point in unloaded)
    assert result.record.parameters["behaviors"] == []


def test_scale_is_in_percent_and_not_clamped(story: Story) -> None:
    folder = tiny_models.save(tiny_models.llama(layers=1, seed=5), story.folder / "smaller")
    story.repo.switch("smaller", orphan=True)
    try:
        story.repo.commit("smaller", identity=folder)
    finally:
        story.repo.switch("main")
    result = story.repo.study_scale(
        [str(story.commits["base"]), "smaller"], resets=["estimated_delta", "store"], seeds=1, **QUICK
    )
    assert [str(commit) for commit in result.record.commits] == [
        str(story.commits["base"]),
        str(story.repo.resolve("smaller")),
    ]
    sizes = {point.condition["identity"]: point.values["parameters"] for point in result.record.points}
    assert sizes["smaller"] < sizes[str(story.commits["base"])]
    for point in result.record.points:
        assert point.values["recoverability"] == pytest.approx(100 * point.values["rf"])
        assert point.values["seconds"] > 0
        assert (point.values["recoverability"] == 100) is (point.condition["reset"] in BACK)
    worse = points(result, mechanism="unstructured", reset="estimated_delta")
    assert all(point.values["recoverability"] < 0 for point in worse)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"alpha": -1.0}, UsageError, "alpha"),
        ({"alpha": float("nan")}, UsageError, "alpha"),
        ({"steps": 0}, UsageError, "steps"),
        ({"layers": 0}, UsageError, "layers"),
        ({"learning_rate": 2.0}, UsageError, "learning_rate"),
        ({"seeds": 0}, UsageError, "seed"),
        ({"threshold": -1.0}, UsageError, "threshold"),
        ({"mechanisms": ["magic"]}, UsageError, "'magic' is no mechanism"),
        ({"mechanisms": []}, UsageError, "no mechanism is named"),
        ({"resets": ["prayer"]}, UsageError, "'prayer' is no reset"),
        ({"behaviors": ["nobody"]}, NotFoundError, "nobody"),
        ({"probe": "missing"}, NotFoundError, "missing"),
        ({"training": "missing"}, NotFoundError, "missing"),
        ({"mechanisms": ["overlay"]}, NoMechanismError, "no overlay"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    story: Story, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    from rblstore.operations import study_model

    monkeypatch.setattr(study_model, "StudyModel", None)
    before = len(story.repo.studies())
    with pytest.raises(error, match=says):
        story.repo.study_mechanisms(story.commits["a"], **options)
    assert len(story.repo.studies()) == before


def test_scale_refuses_what_makes_no_sense(story: Story) -> None:
    base = str(story.commits["base"])
    for revisions, options, says in (
        ([], {}, "no identity"),
        ([base, base], {}, "one identity"),
        ([base, str(story.commits["a"])], {}, "one identity"),
        ([base], {"probes": ["measured", "trained"]}, "2 probes are named"),
        ([base], {"mechanisms": ["overlay"]}, "no mechanism of this study"),
    ):
        with pytest.raises(UsageError, match=says):
            story.repo.study_scale(revisions, **options)


def test_a_model_that_is_not_trained_leaves_no_evidence(tmp_path: Path) -> None:
    import rblstore

    folder = tiny_models.save(tiny_models.bert(), tmp_path / "bert")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("embedding", identity=folder)
        repo.add_probe("p", [{"id": "p", "tokens": [5, 17, 80]}])
        with pytest.raises(UntrainableModelError, match="BertModel is not trained here"):
            repo.study_mechanisms(mechanisms=["structured"], seeds=1)
        assert repo.studies() == []
        with pytest.raises(UntrainableModelError, match="gives no logits, so nothing is distilled"):
            repo.study_mechanisms(mechanisms=["unstructured"], seeds=1)
        assert not list((tmp_path / "store" / ".rbl" / "studies").glob("*"))  # nothing was measured first
        # Noise needs no loss: what cannot be said of an embedding is None, with the reason, and never called KL.
        result = repo.study_mechanisms(mechanisms=["unstructured"], resets=["pull_back", "store"], seeds=1)
        for point in result.record.points:
            assert point.values["rf"] is None
            assert "no distribution" in str(point.reason)
            assert {"relative_l2", "cosine"} == set(point.prompts[0].values)
            assert point.bit_equal is (point.condition["reset"] == "store")


def test_scale_knows_what_the_last_identity_cannot_do_before_it_measures_the_first(tmp_path: Path) -> None:
    import rblstore

    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("llama", identity=tiny_models.save(tiny_models.llama(), tmp_path / "llama"))
        repo.switch("embedding", orphan=True)
        repo.commit("bert", identity=tiny_models.save(tiny_models.bert(), tmp_path / "bert"))
        repo.add_probe("p", [{"id": "p", "tokens": [5, 17, 80]}])
        with pytest.raises(UntrainableModelError, match="embedding: a BertModel is not trained here") as caught:
            repo.study_scale(["main", "embedding"], seeds=1)
        assert caught.value.object == "embedding"
        assert repo.studies() == []
        assert not list((tmp_path / "store" / ".rbl" / "studies").glob("*"))


def test_masked_models_are_trained_and_distilled(tmp_path: Path) -> None:
    import rblstore

    folder = tiny_models.save(tiny_models.bert("BertForMaskedLM"), tmp_path / "bert")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("masked", identity=folder)
        repo.add_probe("p", [{"id": "p", "tokens": [5, 17, 80, 3]}])
        result = repo.study_mechanisms(resets=["distillation", "store"], seeds=1, **QUICK)
        for point in result.record.points:
            assert point.bit_equal is (point.condition["reset"] in BACK)


def test_the_command_writes_its_table_and_its_picture(story: Story, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from rblstore.cli.program import rbl

    csv, plot = tmp_path / "m.csv", tmp_path / "m.svg"
    options = ["--mechanism", "reversible", "--behavior", "a", "--seeds", "1", "--training", "trained", "--json"]
    where = ["-C", str(story.repo.path), "study"]
    ran = CliRunner().invoke(
        rbl, [*where, "mechanisms", str(story.commits["a"]), *options, "--csv", str(csv), "--plot", str(plot)]
    )
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout)
    assert [(row["condition"]["reset"], row["bit_equal"]) for row in document["summary"]] == [
        ("none", False),
        ("unload", True),
    ]
    assert csv.read_text().count("unload") >= 3
    assert plot.read_bytes().lstrip().startswith(b"<?xml")
    refused = CliRunner().invoke(rbl, [*where, "scale", "main", "--reset", "prayer", "--json"])
    assert refused.exit_code == 2
    assert json.loads(refused.stdout)["code"] == "usage"


def test_a_behavior_that_stands_on_another_is_a_conflict(story: Story, tmp_path: Path) -> None:
    """It cannot be measured on the identity alone; unless named it is left out."""
    import rblstore

    model = tiny_models.llama()
    base = tiny_models.save(model, tmp_path / "base")
    tuned, again = tiny_models.llama(), tiny_models.llama()
    weights = [one.model.layers[0].mlp.down_proj.weight for one in (tuned, again)]
    for place, weight in enumerate(weights, 1):
        weight.data.mul_(1 + 0.25 * place)
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        repo.commit("sft", behaviors={"sft": tiny_models.save(tuned, tmp_path / "sft")})
        repo.commit("dpo", behaviors={"dpo": tiny_models.save(again, tmp_path / "dpo")})
        repo.add_probe("p", [{"id": "p", "tokens": [5, 17, 80]}])
        with pytest.raises(ConflictError):
            repo.study_mechanisms(behaviors=["dpo"], seeds=1)
        result = repo.study_mechanisms(mechanisms=["overlay"], resets=["store"], seeds=1)
        assert result.record.parameters["behaviors"] == ["sft"]
