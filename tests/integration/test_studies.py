"""Elimination, mutation, SVAR and entropy on tiny models; resuming, bad input, and what becomes of a study."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from click.testing import CliRunner

import rblstore
from rblstore.cli.program import rbl
from rblstore.errors import ConflictError, InputError, NotFoundError, UsageError
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.study_records import PromptMeasures, Study, StudyPoint
from rblstore.operations.probe import require_probe
from rblstore.operations.reindex import reindex
from rblstore.operations.study_csv import study_csv
from rblstore.operations.study_journal import StudyJournal, stale_journals
from rblstore.operations.study_model import StudyModel
from rblstore.operations.study_points import ImpossibleFigureError, check_bounds
from rblstore.operations.study_run import StudyResult
from rblstore.operations.study_summary import figures, summarise

PROMPTS = [{"id": "one", "tokens": [1, 2, 3, 4]}, {"id": "two", "tokens": [9, 8, 7]}]
LN2 = math.log(2)


class Shelf:
    """base; a LoRA on it; a fine-tune on it; both; and kinds of adapters one by one, each on a branch of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_models.llama(tied=True)
        tiny_models.save(self.model, folder / "base")
        tiny_models.save_adapter(self.model, folder / "a", "lora", seed=1)
        with torch.no_grad():
            self.model.model.layers[0].mlp.down_proj.weight.mul_(1.25)
            self.model.model.norm.weight[:5].add_(0.5)
        tiny_models.save(self.model, folder / "ft")
        self.repo: Any = rblstore.init(folder / "store")
        self.base = self.repo.commit("base", identity=folder / "base").commit
        self.repo.add_probe("two", PROMPTS, default=True)
        self.a = self.on_base("a", a=folder / "a")
        self.ft = self.on_base("ft", ft=folder / "ft")
        self.both = self.repo.commit("both", behaviors={"a": folder / "a"}, branch="ft").commit

    def on_base(self, branch: str, **behaviors: Path) -> Any:
        self.repo.create_branch(branch, self.base)
        return self.repo.commit(branch, behaviors=behaviors, branch=branch).commit

    def cli(self, *arguments: str | Path) -> Any:
        return CliRunner().invoke(rbl, ["-C", str(self.folder / "store"), *map(str, arguments)])

    @property
    def journals(self) -> list[Path]:
        return sorted((self.folder / "store" / ".rbl" / "studies").glob("*"))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    found = Shelf(tmp_path_factory.mktemp("studies"))
    yield found
    found.repo.close()


def rows(result: StudyResult) -> list[Any]:
    return list(summarise(result.record))


# -- elimination ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eliminated(shelf: Shelf) -> StudyResult:
    return shelf.repo.study_elimination(shelf.a, epsilons=[1.0, 0.5, 0.99])  # type: ignore[no-any-return]


def test_elimination_ends_in_exact_recovery(eliminated: StudyResult) -> None:
    found = rows(eliminated)
    assert [row.condition for row in found] == [{"epsilon": one} for one in (0.0, 0.5, 0.99, 1.0)]
    # Of what is left at 0.99 nothing is in the second factors, so the products are nothing already.
    assert [row.bit_equal for row in found] == [False, False, True, True]
    assert (found[0].mean("rf"), found[3].mean("rf"), found[3].mean("kl")) == (0.0, 1.0, 0.0)
    assert 0.0 < found[1].mean("rf") < 1.0
    assert found[0].mean("kl") == found[1].mean("kl_adapted") > found[1].mean("kl") > 0.0
    assert eliminated.as_json()["figures"] == {"epsilon_star": 0.99, "epsilon_star_bit_equal": 0.99}
    assert eliminated.record.parameters["form"] == "adapter"


def test_elimination_of_an_overlay(shelf: Shelf) -> None:
    found = rows(shelf.repo.study_elimination(shelf.both, "ft", epsilons=[0.3, 1.0]))
    assert [row.bit_equal for row in found] == [False, False, True]
    assert found[1].mean("kl") > 0.0


def test_epsilon_star_is_what_the_paper_says(eliminated: StudyResult) -> None:
    def point(epsilon: float, kl: float) -> StudyPoint:
        return StudyPoint({"epsilon": epsilon}, None, kl == 0, {}, None, (PromptMeasures("p", {"kl": kl, "js": kl}),))

    def star(*kl: float) -> dict[str, Any]:
        points = tuple(point(place / (len(kl) - 1), one) for place, one in enumerate(kl))
        return figures(Study("elimination", *([(), (), {}, {}]), points, "x", "t"))  # type: ignore[arg-type]

    assert star(0.3, 0.1, 1e-7, 5e-7, 0.0) == {"epsilon_star": 0.5, "epsilon_star_bit_equal": 1.0}
    assert star(0.3, 1e-7, 0.2, 1e-7, 0.0) == {"epsilon_star": 0.75, "epsilon_star_bit_equal": 1.0}
    assert star(0.3, 0.1) == {"epsilon_star": None, "epsilon_star_bit_equal": None}


@pytest.mark.parametrize("kind", ["loha", "lokr", "vera", "oft"])
def test_elimination_of_other_kinds(shelf: Shelf, kind: str) -> None:
    tiny_models.save_adapter(tiny_models.llama(tied=True), shelf.folder / kind, kind)
    commit = shelf.on_base(kind, x=shelf.folder / kind)
    found = rows(shelf.repo.study_elimination(commit, epsilons=[1.0]))
    assert [row.bit_equal for row in found] == [False, True]


@pytest.mark.parametrize("kind", ["ia3", "dora", "modules_to_save", "pissa"])
def test_what_is_not_nothing_at_zero_is_not_eliminated(shelf: Shelf, kind: str) -> None:
    tiny_models.save_adapter(tiny_models.llama(tied=False), shelf.folder / kind, kind)
    commit = shelf.on_base(kind, x=shelf.folder / kind)
    with pytest.raises(ConflictError, match="element by element") as caught:
        shelf.repo.study_elimination(commit)
    assert caught.value.code == "not_eliminable"


@pytest.mark.parametrize("kind", ["lora", "ia3", "dora", "modules_to_save", "pissa", "bias_lora_only"])
def test_of_every_kind_what_it_changes_of_the_weights_can_go(tmp_path: Path, kind: str) -> None:
    # GPT-2 has biases, which merging changes although no effect of the behavior names them.
    model = tiny_models.gpt2()
    tiny_models.save_adapter(model, tmp_path / kind, kind)
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tiny_models.save(model, tmp_path / "base"))
        repo.add_probe("two", PROMPTS)
        repo.commit("x", behaviors={"x": tmp_path / kind})
        found = rows(repo.study_elimination(epsilons=[0.5, 1.0], form="merged"))
    assert [row.bit_equal for row in found] == [False, False, True]
    assert found[2].mean("rf") == 1.0
    assert found[1].mean("kl") not in (found[0].mean("kl"), 0.0)


def test_what_is_merged_goes_beside_another_behavior(shelf: Shelf) -> None:
    # Taking one of two adapters out of the weights leaves what the other one made of them.
    tiny_models.save_adapter(shelf.model, shelf.folder / "b", "lora", seed=2)
    commit = shelf.on_base("two", a=shelf.folder / "a", b=shelf.folder / "b")
    result = shelf.repo.study_elimination(commit, "b", epsilons=[1.0], form="merged")
    assert [row.bit_equal for row in rows(result)] == [False, True]
    assert result.record.parameters["form"] == "merged"
    assert result.record.environment["form"] == "merged"


@pytest.mark.parametrize(("name", "most"), [("dora", 2), ("a", 4)])
def test_peft_merges_once_and_not_once_for_each_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    from rblstore.operations import merged_tensors

    model, made = tiny_models.llama(), []
    for kind in ("dora", "lora"):
        tiny_models.save_adapter(model, tmp_path / kind, kind)
    start = merged_tensors.PeftMerge.__init__
    monkeypatch.setattr(merged_tensors.PeftMerge, "__init__", lambda *given: made.append(1) or start(*given))
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tiny_models.save(model, tmp_path / "base"))
        repo.add_probe("two", PROMPTS)
        repo.commit("both", behaviors={"dora": tmp_path / "dora", "a": tmp_path / "lora"})
        found = rows(repo.study_elimination(behavior=name, epsilons=[0.5, 1.0], form="merged"))
    assert [row.bit_equal for row in found] == [False, False, True]
    assert len(made) <= most


def test_what_changes_no_weights_cannot_go_piece_by_piece(shelf: Shelf) -> None:
    tiny_models.save_adapter(tiny_models.llama(tied=True), shelf.folder / "prompt", "prompt_tuning")
    commit = shelf.on_base("prompt", x=shelf.folder / "prompt")
    for form in ("adapters", "merged"):
        with pytest.raises(ConflictError, match="changes no weights") as caught:
            shelf.repo.study_elimination(commit, form=form)
        assert caught.value.code == "not_eliminable"
        assert "--form" not in str(caught.value.hint)


def test_a_study_that_nobody_knows_is_called_a_study(shelf: Shelf) -> None:
    for name in ("zz", "0123456"):
        with pytest.raises(NotFoundError, match=f"no study is called '{name}'"):
            shelf.repo.study(name)


@pytest.mark.parametrize(
    ("kl", "js"), [(0.339, 9.63), (0.339, 0.665), (1e-9, 1e-8)], ids=["above ln 2", "above KL", "tiny"]
)
def test_figures_that_cannot_be_are_refused(kl: float, js: float) -> None:
    point = StudyPoint({}, None, False, {}, None, (PromptMeasures("p", {"kl": kl, "kl_reverse": 9.0, "js": js}),))
    with pytest.raises(ImpossibleFigureError, match="'p'"):
        check_bounds(point)


def test_figures_at_the_bound_are_not() -> None:
    # p = (1, 0), q = (1 - t, t): as t goes to 1 JS / KL goes to 0, at p = (0, 1) it is ln 2 / 2 at most.
    values = {"kl": 0.01, "kl_reverse": None, "js": 0.01 * LN2 / 2}
    point = StudyPoint({}, None, False, {}, None, (PromptMeasures("p", values),))
    assert check_bounds(point) is point


# -- mutation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mutated(shelf: Shelf) -> StudyResult:
    return shelf.repo.study_mutation(shelf.a, [0.001, 0.1], seeds=2)  # type: ignore[no-any-return]


def test_mutation_is_undone_by_the_store_alone(mutated: StudyResult) -> None:
    found = {(row.condition["alpha"], row.condition["reset"]): row for row in rows(mutated)}
    for alpha in (0.001, 0.1):
        without, restored = found[alpha, "none"], found[alpha, "store"]
        assert without.seeds == restored.seeds == (0, 1)
        assert (without.bit_equal, without.mean("rf")) == (False, 0.0)
        assert (restored.bit_equal, restored.mean("rf"), restored.mean("kl")) == (True, 1.0, 0.0)
        assert restored.mean("kl_adapted") == pytest.approx(without.mean("kl"), rel=1e-12)
        assert 0 < without.mean("js") < LN2
    assert found[0.1, "none"].mean("kl") > found[0.001, "none"].mean("kl")
    assert found[0.1, "none"].mean("js") > found[0.001, "none"].mean("js")


def test_rf_is_uncertain_over_prompts_too(eliminated: StudyResult, mutated: StudyResult) -> None:
    for result in (eliminated, mutated):
        for row in rows(result):
            found, points = row.measures["rf"], [one for one in result.record.points if one.condition == row.condition]
            assert found.prompts == len(PROMPTS)
            assert found.mean == pytest.approx(math.fsum(one.values["rf"] for one in points) / len(points), rel=1e-12)
    spread = [row.measures["rf"] for row in rows(eliminated)]
    assert any(one.low < one.mean < one.high for one in spread)
    assert (spread[-1].low, spread[-1].high) == (1.0, 1.0)


def test_a_mutation_is_the_same_again(mutated: StudyResult, shelf: Shelf) -> None:
    again = shelf.repo.study_mutation(shelf.a, [0.1], seeds=1)
    points = [point for point in mutated.record.points if point.condition["alpha"] == 0.1 and point.seed == 0]
    assert again.record.points == tuple(points)


# -- svar -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("commit", "form"), [("a", "adapters"), ("ft", "adapters"), ("a", "merged")])
def test_svar_is_the_mean_over_perturbations(shelf: Shelf, commit: str, form: str) -> None:
    chosen = ["scale:0.9", "normal:0.01", "drop:0.25", "uniform:0.05@middle"]
    result = shelf.repo.study_svar(getattr(shelf, commit), perturbations=chosen, form=form, seeds=2)
    found = {row.condition["perturbation"]: row for row in rows(result)}
    assert [len(row.seeds) for row in found.values()] == [0, 2, 2, 2]
    assert all(row.mean("kl") > 0 and not row.bit_equal for row in found.values())
    svar = figures(result.record)["svar"]
    assert svar["mean"] == pytest.approx(math.fsum(row.mean("kl") for row in found.values()) / 4, rel=1e-12)
    assert svar["low"] <= svar["mean"] <= svar["high"]
    assert result.record.environment.get("form") == ("merged" if form == "merged" else None)


def test_svar_of_an_overlay_held_apart_scales_what_it_changed(shelf: Shelf) -> None:
    def kl(form: str) -> Any:
        result = shelf.repo.study_svar(shelf.ft, perturbations=["scale:0.999"], form=form)
        return rows(result)[0].mean("kl")

    assert 0 < kl("adapters") < kl("merged")


# -- entropy ----------------------------------------------------------------------------------------------------


def test_entropy_of_the_frozen_base_does_not_drift(shelf: Shelf) -> None:
    result = shelf.repo.study_entropy(shelf.both, 3)
    points = result.record.points
    assert len(points) == 3
    assert all(point.bit_equal for point in points)
    assert len({json.dumps(point.body()["values"]) for point in points}) == 1
    of_prompts = [prompt.values["entropy"] for prompt in points[0].prompts]
    assert points[0].values["entropy_max"] == max(value for value in of_prompts if value is not None)
    assert figures(result.record) == {"identical": True}


# -- one model, resuming, bad input -----------------------------------------------------------------------------


class _Counted:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> None:
        from rblstore.operations import study_model

        measure, load = study_model.StudyModel.measured, study_model.load_composition
        self.measured, self.loaded, self.stop = 0, 0, stop

        def counted(*arguments: Any, **options: Any) -> Any:
            if self.measured == self.stop:
                raise KeyboardInterrupt
            self.measured += 1
            return measure(*arguments, **options)

        def loading(*arguments: Any, **options: Any) -> Any:
            self.loaded += 1
            return load(*arguments, **options)

        monkeypatch.setattr(study_model.StudyModel, "measured", counted)
        for module in (
            "study_model",
            "load",
            "live_measuring",
            "live_binding",
            "baseline",
            "merged_tensors",
            "live_class",
        ):
            if hasattr(__import__(f"rblstore.operations.{module}", fromlist=["x"]), "load_composition"):
                monkeypatch.setattr(f"rblstore.operations.{module}.load_composition", loading)


def test_no_second_model_is_loaded(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _Counted(monkeypatch)
    # No baseline of either is there yet.
    shelf.repo.add_probe("fresh", [{"id": "x", "tokens": [5, 6, 7]}])
    shelf.repo.study_mutation(shelf.both, [0.01], "fresh", seeds=1)
    assert counted.loaded == 1
    shelf.repo.study_svar(shelf.both, "a", ["scale:0.9"], "fresh", form="merged")
    assert counted.loaded == 2


def test_what_was_written_into_the_model_never_reaches_another_state(shelf: Shelf) -> None:
    store = shelf.repo._store
    both = store.record(store.record(shelf.both, Commit).composition, Composition)
    base = Composition(both.identity)
    with StudyModel(store, shelf.both, require_probe(store, None), author="x") as model:
        references = {one: model.reference(one) for one in (both, base)}
        for slot in both.slots:
            phi = model.behavior_tensors(slot)
            assert phi
            for tensor in phi.values():
                tensor.fill_(3.0)
            assert not model.measured(references[both], {}, None).bit_equal
            model.become(base)
            assert model.measured(references[base], {}, None).bit_equal
            for tensor in model.identity_tensors().values():
                tensor.fill_(3.0)
            model.become(both)
            assert model.measured(references[both], {}, None).bit_equal
        ground = model.ground_tensors(both.slots[0])
        assert set(ground) == set(model.behavior_tensors(both.slots[0]))
        assert all(torch.equal(ground[name], shelf.repo.tensor(shelf.base, name)) for name in ground)
        model.become(base)
        with pytest.raises(ConflictError, match="not on the live model"):
            model.behavior_tensors(both.slots[0])


STUDIES: dict[str, Callable[[Any, Shelf, dict[str, Any]], StudyResult]] = {
    "elimination": lambda repo, shelf, more: repo.study_elimination(shelf.ft, epsilons=(0.5, 1.0), **more),
    "mutation": lambda repo, shelf, more: repo.study_mutation(shelf.base, (0.05,), seeds=1, **more),
    "svar": lambda repo, shelf, more: repo.study_svar(shelf.a, perturbations=("scale:0.9",), form="merged", **more),
    "entropy": lambda repo, shelf, more: repo.study_entropy(shelf.base, runs=2, **more),
    "interference": lambda repo, shelf, more: repo.study_interference(shelf.both, **more),
    "attribution": lambda repo, shelf, more: repo.study_attribution(shelf.both, **more),
    "shift": lambda repo, shelf, more: repo.study_shift(shelf.both, "a", held_out="other", **more),
    "mechanisms": lambda repo, shelf, more: repo.study_mechanisms(
        shelf.ft, mechanisms=["unstructured", "overlay"], resets=["store"], seeds=1, **more
    ),
    "scale": lambda repo, shelf, more: repo.study_scale(
        [shelf.base], mechanisms=["unstructured"], resets=["store"], seeds=1, **more
    ),
}
BACK = {"elimination": 1, "mutation": 1, "entropy": 2, "shift": 2, "mechanisms": 2, "scale": 1}
"""How many points of a study have to be equal to what is stored, bit for bit."""


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_in_another_element_type(shelf: Shelf, name: str) -> None:
    """What is stored is float32; every value is rounded to bfloat16, and comes back so to the bit."""
    if "other" not in [one.name for one in shelf.repo.probes()]:
        shelf.repo.add_probe("other", [{"id": "three", "tokens": [4, 6, 6, 2]}])
    record = STUDIES[name](shelf.repo, shelf, {"dtype": "bfloat16"}).record
    assert record.parameters["dtype"] == "bfloat16"
    assert name == "scale" or record.environment["dtype"] == "bfloat16"
    assert sum(bool(point.bit_equal) for point in record.points) >= BACK.get(name, 0)
    stored = shelf.repo.baselines()
    assert "bfloat16" in {one.environment["dtype"] for one in stored}


def test_an_element_type_that_nobody_knows(shelf: Shelf) -> None:
    known = shelf.repo.studies()
    with pytest.raises(UsageError, match="no element type"):
        shelf.repo.study_entropy(shelf.base, dtype="int8")
    assert shelf.cli("study", "entropy", shelf.base, "--dtype", "int8").exit_code == 2
    assert shelf.repo.studies() == known


def test_the_element_type_is_asked_for_on_the_command_line(shelf: Shelf) -> None:
    found = shelf.cli("study", "entropy", shelf.base, "--runs", "1", "--dtype", "float64", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert (document["parameters"]["dtype"], document["environment"]["dtype"]) == ("float64", "float64")


def test_a_study_that_was_interrupted_goes_on(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        counted = _Counted(patch, stop=2)
        with pytest.raises(KeyboardInterrupt):
            shelf.repo.study_elimination(shelf.a, epsilons=[0.25, 0.75])
        assert counted.measured == 2
    before = len(shelf.repo.studies())
    (journal,) = shelf.journals
    with monkeypatch.context() as patch:
        counted = _Counted(patch)
        shelf.repo.study_elimination(shelf.a, epsilons=[0.25, 0.7])  # other parameters take nothing
        assert counted.measured == 3
    assert shelf.journals == [journal]
    # A line that is damaged is measured again; so is what was torn off.
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0].replace(b'"kl"', b'"kk"') + lines[1] + lines[1][:50])
    with monkeypatch.context() as patch:
        counted = _Counted(patch)
        whole = shelf.repo.study_elimination(shelf.a, epsilons=[0.25, 0.75])
        assert counted.measured == 2
    assert shelf.journals == []
    assert len(shelf.repo.studies()) == before + 2
    again = shelf.repo.study_elimination(shelf.a, epsilons=[0.25, 0.75])
    assert again.record.points == whole.record.points  # bit for bit, whichever run measured them


def test_a_study_whose_journal_outlived_it_is_not_recorded_twice(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(StudyJournal, "remove", lambda _: None)  # as if killed between the two
        first = shelf.repo.study_elimination(shelf.a, epsilons=(0.3, 1.0))
    assert len(shelf.journals) == 1
    known = shelf.repo.studies()
    with monkeypatch.context() as patched:
        patched.setattr(StudyModel, "measured", lambda *_, **__: pytest.fail("measured again"))
        again = shelf.repo.study_elimination(shelf.a, epsilons=(0.3, 1.0), author="another")
    assert again.study_id == first.study_id
    assert (shelf.repo.studies(), shelf.journals) == (known, [])
    anew = shelf.repo.study_elimination(shelf.a, epsilons=(0.3, 1.0), author="another")
    assert anew.study_id != first.study_id, "what is measured again is evidence of its own"


KILLED = """
import sys, signal, rblstore

def stop(event):
    if event.unit == "points" and event.done == 2:
        print("two points", flush=True)
        signal.pause()

with rblstore.open(sys.argv[1]) as repo:
    repo.study_elimination(sys.argv[2], epsilons=(0.1, 0.2, 0.6, 1.0), author="killed", progress=stop)
"""


def test_a_study_that_was_killed_goes_on_in_another_process(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.repo.study_elimination(shelf.a, epsilons=(0.5,))  # its references are recorded from here on
    for name in ("killed", "whole"):
        shutil.copytree(shelf.folder / "store", tmp_path / name)
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(shelf.a)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "two points\n"
        child.kill()
        assert child.wait() == -signal.SIGKILL
    (journal,) = (tmp_path / "killed" / ".rbl" / "studies").glob("*")
    assert len(journal.read_bytes().splitlines()) == 2

    def study(name: str) -> tuple[Study, int]:
        measured: list[Any] = []
        original = StudyModel.measured
        with monkeypatch.context() as patched, rblstore.open(tmp_path / name) as repo:
            patched.setattr(StudyModel, "measured", lambda *args: measured.append(args) or original(*args))
            result = repo.study_elimination(shelf.a, epsilons=(0.1, 0.2, 0.6, 1.0), author="killed")
            assert len(repo.studies()) == len(shelf.repo.studies()) + 1
        return result.record, len(measured)

    (resumed, few), (whole, all_of_them) = study("killed"), study("whole")
    assert all_of_them - few == 2
    assert dataclasses.replace(resumed, time=whole.time) == whole


def test_lines_of_another_journal_are_not_taken(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    for epsilons in ([0.1], [0.15]):
        with monkeypatch.context() as patch:
            _Counted(patch, stop=1)
            with pytest.raises(KeyboardInterrupt):
                shelf.repo.study_elimination(shelf.ft, epsilons=epsilons)
    one, other = shelf.journals
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    with monkeypatch.context() as patch:
        counted = _Counted(patch)
        for epsilons in ([0.1], [0.15]):
            shelf.repo.study_elimination(shelf.ft, epsilons=epsilons)
        assert counted.measured == 4
    assert shelf.journals == []


def test_nothing_is_recorded_of_a_model_that_gives_nan(shelf: Shelf) -> None:
    before = shelf.repo.studies()
    with pytest.raises(InputError, match=r"alpha 1e\+06, reset none, seed 0: prompt 'one'") as caught:
        shelf.repo.study_mutation(shelf.base, [1e6], seeds=1, dtype="float16")
    assert caught.value.code == "nan_output"
    with pytest.raises(InputError, match="'one'"):
        shelf.repo.study_svar(shelf.a, perturbations=["normal:1e6"], seeds=1, dtype="float16")
    assert shelf.repo.studies() == before
    assert [path.read_bytes() for path in shelf.journals] == []


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda s: s.repo.study_elimination(s.base), UsageError, "no behavior to study"),
        (lambda s: s.repo.study_elimination(s.both), UsageError, "several behaviors, and none is named"),
        (lambda s: s.repo.study_svar(s.both), UsageError, "several behaviors, and none is named"),
        (lambda s: s.repo.study_elimination(s.both, "zz"), NotFoundError, "no behavior 'zz'"),
        (lambda s: s.repo.study_elimination(s.a, epsilons=[1.5]), UsageError, "epsilon is a number from 0 to 1"),
        (lambda s: s.repo.study_elimination(s.a, epsilons=[math.nan]), UsageError, "epsilon is a number from 0 to 1"),
        (lambda s: s.repo.study_mutation(s.a, [0.0]), UsageError, "alpha is a number above 0"),
        (lambda s: s.repo.study_mutation(s.a, [math.inf]), UsageError, "alpha is a number above 0"),
        (lambda s: s.repo.study_mutation(s.a, [1e20]), UsageError, "up to 1e\\+06, not 1e\\+20"),
        (lambda s: s.repo.study_svar(s.a, perturbations=["scale:1e20"]), UsageError, "from -1e\\+06 to 1e\\+06"),
        (lambda s: s.repo.study_mutation(s.a, []), UsageError, "0 values of alpha"),
        (lambda s: s.repo.study_mutation(s.a, seeds=0), UsageError, "the number of seeds is an integer from 1"),
        (lambda s: s.repo.study_svar(s.a, seeds=-1), UsageError, "the number of seeds is an integer from 1"),
        (lambda s: s.repo.study_svar(s.a, perturbations=["flip:1"]), UsageError, "is no perturbation"),
        (lambda s: s.repo.study_svar(s.a, perturbations=[]), UsageError, "no perturbation is named"),
        (lambda s: s.repo.study_svar(s.a, form="other"), UsageError, "is no form"),
        (lambda s: s.repo.study_entropy(s.a, 0), UsageError, "the number of runs is an integer from 1"),
        (lambda s: s.repo.study_entropy(s.a, probe="zz"), NotFoundError, "no probe is called 'zz'"),
        (lambda s: s.repo.study_elimination("zz"), NotFoundError, "zz"),
        (lambda s: s.repo.study(s.base), NotFoundError, "is a commit, not a study"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, call: Any, kind: type[Exception], words: str
) -> None:
    counted = _Counted(monkeypatch)
    with pytest.raises(kind, match=words):
        call(shelf)
    assert (counted.loaded, counted.measured) == (0, 0)


def test_an_embedding_has_no_entropy_and_no_rf(tmp_path: Path) -> None:
    model = tiny_models.bert("BertModel")
    tiny_models.save(model, tmp_path / "base")
    tiny_models.save_adapter(model, tmp_path / "a", "lora")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tmp_path / "base")
        repo.add_probe("two", PROMPTS)
        repo.commit("a", behaviors={"a": tmp_path / "a"})
        with pytest.raises(ConflictError, match="has no entropy"):
            repo.study_entropy()
        result = repo.study_elimination(epsilons=[1.0])
    found = rows(result)
    assert [row.bit_equal for row in found] == [False, True]
    assert (found[1].mean("rf"), found[1].mean("relative_l2")) == (None, 0.0)
    assert "kl" not in found[0].measures
    assert "no distribution" in found[0].reason


# -- what becomes of a study ------------------------------------------------------------------------------------


def test_a_study_in_every_form(shelf: Shelf, eliminated: StudyResult, tmp_path: Path) -> None:
    done = shelf.cli(
        "study", "elimination", shelf.a, "--epsilon", "0.5", "--epsilon", "1", "--csv", tmp_path / "x.csv", "--json"
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["study"] == "elimination"
    assert document["figures"]["epsilon_star"] == 1.0
    assert [row["condition"]["epsilon"] for row in document["summary"]] == [0, 0.5, 1]
    shown = shelf.cli("study", "show", document["id"][:10])
    assert shown.exit_code == 0
    assert "epsilon_star 1" in shown.stdout
    assert shelf.cli("show", document["id"]).stdout.splitlines()[1:] != []
    assert "epsilon_star 1" in shelf.cli("show", document["id"]).stdout
    assert f"studied {document['id'][:12]}, elimination, 3 points" in shelf.cli("show", shelf.a).stdout
    assert document["id"][:12] in shelf.cli("study", "list", shelf.a).stdout
    assert document["id"][:12] not in shelf.cli("study", "list", shelf.base).stdout
    table = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    points = document["points"]
    assert len(table) == sum(
        len(point["values"]) + sum(len(prompt["values"]) for prompt in point["prompts"]) for point in points
    )
    first = next(row for row in table if row["measure"] == "kl")
    assert first["condition.epsilon"] == "0.0"
    assert float(first["value"]) == points[0]["prompts"][0]["values"]["kl"]


def test_the_commands(shelf: Shelf) -> None:
    mutation = shelf.cli("study", "mutation", shelf.a, "--alpha", "0.01", "--seeds", "1", "--json")
    assert [row["bit_equal"] for row in json.loads(mutation.stdout)["summary"]] == [False, True]
    svar = shelf.cli("study", "svar", shelf.a, "--perturb", "scale:0.9", "--json")
    assert json.loads(svar.stdout)["figures"]["svar"]["mean"] > 0
    entropy = shelf.cli("study", "entropy", shelf.a, "--runs", "2")
    assert "identical    yes" in entropy.stdout
    assert shelf.cli("study", "elimination", shelf.base).exit_code == 2
    assert shelf.cli("study", "mutation", shelf.a, "--alpha", "-1").exit_code == 2
    assert shelf.cli("study", "svar", shelf.a, "--perturb", "x").exit_code == 2


def test_a_table_without_a_place_is_refused_before_anything_is_loaded(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted = _Counted(monkeypatch)
    for path in (tmp_path, tmp_path / "none" / "x.csv"):
        done = shelf.cli("study", "elimination", shelf.a, "--csv", path, "--json")
        assert (done.exit_code, json.loads(done.stdout)["code"]) == (1, "csv_write_failed")
    assert counted.loaded == 0


def test_a_cell_is_no_formula() -> None:
    prompts = (PromptMeasures("=1+1", {"kl": 0.5, "js": None}),)
    point = StudyPoint({"behavior": "-a", "on": True}, 3, None, {}, None, prompts)
    text = study_csv(Study("x", (), (), {}, {}, (point,), "x", "t"))
    table = list(csv.DictReader(io.StringIO(text)))
    assert [row["value"] for row in table] == ["0.5", ""]
    assert table[0]["prompt"] == "'=1+1"
    assert (table[0]["condition.behavior"], table[0]["condition.on"], table[0]["seed"]) == ("'-a", "true", "3")


def test_progress_counts_points(shelf: Shelf) -> None:
    events: list[Any] = []
    shelf.repo.study_entropy(shelf.a, 2, progress=events.append)
    told = [event for event in events if event.unit == "points"]
    assert [(event.done, event.total) for event in told] == [(0, 2), (1, 2), (1, 2), (2, 2)]
    assert told[-1].stage == "run 2"
    assert any(event.unit == "bytes" for event in events)


def test_a_study_outlives_a_catalog_and_its_journal_does_not_outlive_its_grace(tmp_path: Path) -> None:
    tiny_models.save(tiny_models.llama(), tmp_path / "base")
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=tmp_path / "base")
        repo.add_probe("two", PROMPTS)
        study_id = repo.study_entropy(runs=1).study_id
    folder = tmp_path / "store" / ".rbl"
    (folder / "catalog.db").unlink()
    reindex(tmp_path / "store")
    journal = folder / "studies" / f"{'0' * 64}.jsonl"
    journal.write_bytes(b"x\n")
    (folder / "studies" / "README").write_text("somebody's")
    (folder / "studies" / f"{'1' * 64}.jsonl").symlink_to(folder / "refs.log")
    with rblstore.open(tmp_path / "store") as repo:
        assert repo.study(study_id[:12]).record.study == "entropy"
        assert [one.id for one in repo.studies()] == [study_id]
        assert repo.fsck(full=True).ok
        told = next(one for one in rblstore.doctor(tmp_path / "store").findings if one.check == "studies")
        assert (told.level, told.what) == ("note", "1 begun and not recorded, 2 bytes")
        assert repo.gc(apply=True).leftovers == ()
        past = time.time() - 20 * 86400
        os.utime(journal, (past, past))
        assert [one.path for one in repo.gc().leftovers] == [journal]
        assert journal.exists()
        assert [one.path for one in repo.gc(apply=True).leftovers] == [journal]
        assert sorted(path.name for path in (folder / "studies").iterdir()) == [f"{'1' * 64}.jsonl", "README"]
        assert [one.id for one in repo.studies()] == [study_id]


def test_a_journal_of_the_future_stays(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    journal = tmp_path / "studies" / f"{'0' * 64}.jsonl"
    journal.write_bytes(b"")
    os.utime(journal, (2000, 2000))
    assert stale_journals(tmp_path, 0, 1999.0, remove=True) == ()
    assert [one.path for one in stale_journals(tmp_path, 0, 2001.0, remove=True)] == [journal]
