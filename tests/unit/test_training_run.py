"""Training runs: what they commit, where, and what they refuse."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from training_stories import Bench, make_bench, nudge, train

import rblstore
from rblstore.live.binding import same_bits
from rblstore.live.snapshot import _Frozen
from rblstore.objects.content_records import Identity


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = make_bench(tmp_path, tiny_models.llama())
    with bench.repo:
        yield bench


def messages(repo: Any, branch: str = "main") -> list[str]:
    return [entry.message for entry in reversed(repo.log(branch))]


class TestWhatIsCommitted:
    def test_every_nth_step_at_will_and_at_the_end(self, bench: Bench) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "polite", every=2) as run:
            for step in range(1, 6):
                nudge(model, step)
                assert run.step(loss=torch.tensor(step / 3)) == (step % 2 == 0)
                if step == 3:
                    run.commit("by hand")
        assert messages(bench.repo) == [
            "base",
            "polite: step 2, loss 0.6667",
            "by hand",
            "polite: step 4, loss 1.333",
            "polite: step 5, loss 1.667",
        ]
        assert [one.commit for one in run.commits] == [entry.commit for entry in reversed(bench.repo.log())][1:]
        assert (run.skipped, run.unchanged, run.warnings, run.error) == ([], [], [], None)
        assert bench.repo.fsck(full=True).damages == ()
        model.eval()
        assert torch.equal(tiny_models.outputs(bench.repo.load()), tiny_models.outputs(model))

    def test_adapters_are_stored_as_they_are_unless_asked_for(self, bench: Bench) -> None:
        for value, compression in ((1.0, None), (2.0, "fast")):
            model = bench.adapted()
            for parameter in model.parameters():
                if parameter.requires_grad:
                    torch.nn.init.constant_(parameter, value)
            with bench.repo.training(model, "polite", compression=compression) as run:
                pass
            (one,) = run.commits
            assert (one.stored_bytes == one.new_bytes) == (compression is None)
        with pytest.raises(rblstore.UsageError, match="zip"):
            bench.repo.training(bench.adapted(), "polite", compression="zip")

    def test_a_loop_that_counts_steps_itself(self, bench: Bench) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "polite", every=10, message="run 7") as run:
            for step in (4, 9, 13, 19, 40):
                nudge(model, step)
                run.step(step=step)
            with pytest.raises(rblstore.UsageError):
                run.step(step=40)
        assert messages(bench.repo)[1:] == ["run 7: step 13", "run 7: step 40"]

    def test_what_is_said_reaches_the_audit(self, bench: Bench) -> None:
        model = bench.adapted()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        with bench.repo.training(
            model,
            "polite",
            every=1,
            dataset="org/talk",
            dataset_license="CC-BY-4.0",
            license="mit",
            meta={"ticket": "12"},
            seed=7,
            optimizer=optimizer,
        ) as run:
            for step in range(2):
                nudge(model, step)
                run.step(loss=0.1, tokens=100)
        part = bench.repo.audit().components[1]
        assert (part.license, part.datasets) == (("mit",), ("org/talk",))
        assert part.dataset_licenses == ("org/talk=CC-BY-4.0",)
        said = {claim.key: (claim.value, claim.origin) for claim in part.claims}
        assert said["dataset_license"] == ("org/talk=CC-BY-4.0", "api")
        assert said["meta.ticket"] == ("12", "api")
        for key, value in {
            "step": "2",
            "loss": "0.1",
            "learning_rate": "0.25",
            "tokens": "200",
            "seed": "7",
            "device": "cpu",
            "torch": torch.__version__,
            "rblstore": rblstore.__version__,
        }.items():
            assert said[f"meta.{key}"] == (str(value), "training run")
        assert {"meta.run_started", "meta.peft", "meta.transformers"} <= said.keys()
        stated = bench.repo.statements("polite").said
        assert [(data.name, data.licenses) for data in stated.datasets] == [("org/talk", ("CC-BY-4.0",))]
        root = str(bench.repo._store.record(bench.repo.audit().components[0].id, Identity).tensor_root)
        known = {"method": "LORA", "steps": "2", "tokens": "200", "seed": "7", "library.torch": torch.__version__}
        known |= {"identity_before": root, "identity_after": root}
        assert known.items() <= stated.training.items()
        assert run.steps == 2

    def test_the_branch_is_the_one_of_the_start(self, bench: Bench) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "polite", every=1) as run:
            bench.repo.switch("other", create=True)
            nudge(model)
            run.step()
        assert run.branch == "main"
        assert (len(messages(bench.repo, "main")), len(messages(bench.repo, "other"))) == (2, 1)

    def test_a_branch_that_is_named(self, bench: Bench) -> None:
        bench.repo.create_branch("aside")
        model = bench.adapted()
        with bench.repo.training(model, "polite", branch="aside") as run:
            nudge(model)
            run.step()
        assert (len(messages(bench.repo, "main")), len(messages(bench.repo, "aside"))) == (1, 2)

    def test_other_behaviors_stay_where_they_are(self, bench: Bench, tmp_path: Path) -> None:
        for seed, name in enumerate("ab"):
            bench.repo.commit(name, behaviors={name: tiny_models.save_adapter(bench.base, tmp_path / name, seed=seed)})
        before = bench.repo.show("main").behaviors
        model = bench.adapted()
        with bench.repo.training(model, "a") as run:
            nudge(model)
            run.step()
        after = bench.repo.show("main").behaviors
        assert [part.name for part in after] == ["a", "b"]
        assert (after[0].behavior != before[0].behavior, after[1].behavior == before[1].behavior) == (True, True)

    def test_one_adapter_of_several(self, bench: Bench) -> None:
        model = bench.adapted()
        model.add_adapter("polite", tiny_models._config(bench.base, "rslora"))
        model.set_adapter("polite")
        with bench.repo.training(model, "polite") as run:
            nudge(model)
            run.step()
        alone = bench.repo.commit("again", behaviors={"polite": model}, allow_empty=True)
        assert alone.slots == run.commits[-1].slots
        with pytest.raises(rblstore.UsageError), bench.repo.training(model, "unheard"):
            pass

    def test_tensors_that_hold_nan_are_a_warning(self, bench: Bench) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "polite") as run:
            nudge(model)
            next(parameter for parameter in model.parameters() if parameter.requires_grad).data[0, 0] = float("nan")
            run.step(loss=float("nan"))
        (warning,) = run.warnings
        assert "1 NaN" in warning
        assert messages(bench.repo)[-1] == "polite: step 1, loss nan"

    def test_verified_at_the_end(self, bench: Bench) -> None:
        bench.repo.add_probe("two", [{"id": "a", "tokens": tiny_models.PROMPT[0].tolist()}])
        model = bench.adapted()
        with bench.repo.training(model, "polite", verify_at_end=True, probe="two") as run:
            nudge(model)
            run.step()
        assert run.verification is not None
        assert run.verification.verdict == "exact"


class TestEnds:
    def test_an_exception_passes_through_and_nothing_new_is_committed(self, bench: Bench) -> None:
        model = bench.adapted()
        with pytest.raises(ZeroDivisionError), bench.repo.training(model, "polite", every=1) as run:  # noqa: PT012
            nudge(model)
            run.step()
            nudge(model, 1)
            raise ZeroDivisionError
        assert messages(bench.repo) == ["base", "polite: step 1"]
        with pytest.raises(rblstore.UsageError) as caught:
            run.step()
        assert caught.value.code == "run_over"

    def test_nothing_after_the_end_and_nothing_before_the_start(self, bench: Bench) -> None:
        model = bench.adapted()
        run = bench.repo.training(model, "polite")
        for call in (run.step, run.commit, run.wait, run.finish):
            with pytest.raises(rblstore.UsageError):
                call()
        with run:
            pass
        assert run.unchanged == [] or run.commits
        for call in (run.step, run.commit, run.wait, run.finish, run.start):
            with pytest.raises(rblstore.UsageError) as caught:
                call()
            assert caught.value.code == "run_over"

    def test_another_thread(self, bench: Bench) -> None:
        model = bench.adapted()
        caught: list[Exception] = []

        def elsewhere(run: Any) -> None:
            try:
                run.step()
            except rblstore.RblError as error:
                caught.append(error)

        with bench.repo.training(model, "polite") as run:
            thread = threading.Thread(target=elsewhere, args=(run,))
            thread.start()
            thread.join()
        assert [error.code for error in caught] == ["run_elsewhere"]
        assert run.steps == 0

    def test_two_runs_on_one_model(self, bench: Bench) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "polite"):
            for same in (model, model.base_model.model):
                with pytest.raises(rblstore.LockedError), bench.repo.training(same, "other"):
                    pass
        with bench.repo.training(model, "polite"):
            pass

    def test_a_run_that_is_over_keeps_no_copy_of_the_model(self, bench: Bench) -> None:
        model = bench.whole().requires_grad_(False)
        model.lm_head.requires_grad_(True)
        with bench.repo.training(model, "x") as run:
            nudge(model)
        assert run.commits
        assert not [one for one in gc.get_objects() if type(one) is _Frozen]


class TestRefusals:
    def refused(self, bench: Bench, model: Any, code: str, **options: Any) -> rblstore.RblError:
        before = bench.repo.operations()
        with (
            pytest.raises(rblstore.RblError) as caught,
            bench.repo.training(model, options.pop("name", "x"), **options),
        ):
            pytest.fail("it started")
        assert caught.value.code == code
        assert bench.repo.operations() == before
        assert not list((bench.repo.path / ".rbl" / "tmp").iterdir())
        return caught.value

    def test_a_model_that_nobody_trains(self, bench: Bench) -> None:
        self.refused(bench, bench.whole().requires_grad_(False), "nothing_trainable")

    @pytest.mark.parametrize("given", [None, "model", {"a": torch.zeros(2)}], ids=lambda given: type(given).__name__)
    def test_no_model(self, bench: Bench, given: Any) -> None:
        self.refused(bench, given, "unsavable")

    def test_a_model_without_values(self, bench: Bench) -> None:
        with torch.device("meta"):
            model = torch.nn.Linear(2, 2)
        self.refused(bench, model, "unguardable")

    @pytest.mark.parametrize("guard", [True, False])
    def test_an_adapter_over_another_base(self, bench: Bench, guard: bool) -> None:
        model = bench.adapted()
        with torch.no_grad():
            model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.add_(0.01)
        error = self.refused(bench, model, "wrong_base", guard=guard)
        assert "q_proj" in error.message

    def test_another_architecture(self, bench: Bench) -> None:
        other = Bench(bench.repo, tiny_models.gpt2())
        self.refused(bench, other.adapted(), "wrong_base")
        self.refused(bench, other.whole(), "wrong_base")

    def test_a_branch_without_an_identity(self, bench: Bench) -> None:
        bench.repo.switch("bare", orphan=True)
        self.refused(bench, bench.adapted(), "no_identity")

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            ({"every": 0}, "bad_training"),
            ({"every": True}, "bad_training"),
            ({"guard_every": 1.5}, "bad_training"),
            ({"on_busy": "wait"}, "bad_training"),
            ({"guard": "maybe"}, "bad_training"),
            ({"seed": "seven"}, "bad_training"),
            ({"dataset_license": "mit"}, "bad_training"),
            ({"dataset": " "}, "usage"),
            ({"resume": "nowhere"}, "unknown_revision"),
            ({"resume": "main"}, "no_such_behavior"),
        ],
        ids=str,
    )
    def test_settings(self, bench: Bench, options: dict[str, Any], code: str) -> None:
        self.refused(bench, bench.adapted(), code, **options)

    def test_names(self, bench: Bench) -> None:
        for name in ("", "..", "a/b", "CON"):
            with pytest.raises(rblstore.UsageError):
                bench.repo.training(bench.base, name)

    def test_what_is_no_number(self, bench: Bench) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "polite", every=1) as run:
            with pytest.raises(rblstore.UsageError):
                run.step(loss="low")
            with pytest.raises(rblstore.UsageError):
                run.step(tokens=-1)
            nudge(model)

    def test_a_base_that_was_written_to_is_not_committed_over(self, bench: Bench) -> None:
        model = bench.adapted()
        with pytest.raises(rblstore.ConflictError) as caught, bench.repo.training(model, "polite", guard=False):  # noqa: PT012
            nudge(model)
            model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.data.add_(0.01)
        assert caught.value.code == "wrong_base"
        assert messages(bench.repo) == ["base"]


class TestGuard:
    def write(self, model: Any) -> None:
        model.base_model.model.model.layers[1].mlp.up_proj.weight.data.add_(0.01)

    def test_it_raises(self, bench: Bench) -> None:
        model = bench.adapted()
        with pytest.raises(rblstore.IdentityMutated), bench.repo.training(model, "polite", guard_every=1) as run:  # noqa: PT012
            nudge(model)
            run.step()
            self.write(model)
        assert messages(bench.repo) == ["base"]

    def test_it_records(self, bench: Bench) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "polite", guard="record", guard_every=1) as run:
            nudge(model)
            self.write(model)
            run.step()
        assert [finding.name for finding in run.findings] == ["model.layers.1.mlp.up_proj.weight"]
        assert len(run.commits) == 1

    def test_of_a_model_that_is_trained_itself_what_is_frozen(self, bench: Bench) -> None:
        model = bench.whole().requires_grad_(False)
        model.lm_head.requires_grad_(True)
        with pytest.raises(rblstore.IdentityMutated), bench.repo.training(model, "ft", guard_every=1) as run:  # noqa: PT012
            nudge(model)
            run.step()
            model.model.norm.weight.data.add_(1.0)


class TestResume:
    @pytest.mark.parametrize("whole", [False, True], ids=["lora", "whole"])
    def test_it_equals_training_that_was_not_interrupted(self, bench: Bench, whole: bool) -> None:
        def start(seed: int) -> tuple[Any, Any, Any]:
            model = bench.whole() if whole else bench.adapted(seed=seed)
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.1
            model.config.attention_dropout = 0.1
            for module in model.modules():
                if hasattr(module, "attention_dropout"):
                    module.attention_dropout = 0.1
            optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
            return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)

        torch.manual_seed(5)
        reference, optimizer, scheduler = start(1)
        train(reference, optimizer, scheduler, None, range(6))

        torch.manual_seed(5)
        model, optimizer, scheduler = start(1)
        options = {"optimizer": optimizer, "scheduler": scheduler, "save_state": True, "every": 3}
        with pytest.raises(KeyError), bench.repo.training(model, "x", **options) as run:  # noqa: PT012
            train(model, optimizer, scheduler, run, range(4))
            raise KeyError
        assert messages(bench.repo)[-1].startswith("x: step 3,")

        torch.manual_seed(99)  # another process: nothing of the first is left
        model, optimizer, scheduler = start(2)
        kept = [id(parameter) for parameter in model.parameters()]
        options = {"optimizer": optimizer, "scheduler": scheduler, "save_state": True, "resume": "main"}
        with bench.repo.training(model, "x", **options) as run:
            assert run.steps == 3
            train(model, optimizer, scheduler, run, range(run.steps, 6))
        assert [id(parameter) for parameter in model.parameters()] == kept
        assert messages(bench.repo)[-1].startswith("x: step 6,")
        for (name, expected), found in zip(reference.named_parameters(), model.parameters(), strict=True):
            assert same_bits(expected, found), name
        (claim,) = [one for one in bench.repo.audit().components[1].claims if one.key == "meta.tokens"]
        assert claim.value == str(6 * 16)

    def test_an_adapter_of_another_shape(self, bench: Bench) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "x"):
            nudge(model)
        for kind in ("rslora", "ia3"):
            with pytest.raises(rblstore.ConflictError), bench.repo.training(bench.adapted(kind), "x", resume="main"):
                pass
        with pytest.raises(rblstore.ConflictError), bench.repo.training(bench.whole(), "x", resume="main"):
            pass

    def test_a_state_that_is_not_there(self, bench: Bench) -> None:
        model = bench.adapted()
        with bench.repo.training(model, "x"):
            nudge(model)
        nudge(model, 5)
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        options: dict[str, Any] = {"resume": "main", "save_state": True, "optimizer": optimizer}
        with pytest.raises(rblstore.NotFoundError), bench.repo.training(model, "x", **options):
            pass
        assert all(torch.equal(before[name], one) for name, one in model.named_parameters())

    @pytest.mark.parametrize("whole", [False, True], ids=["lora", "whole"])
    def test_a_state_that_does_not_fit(self, bench: Bench, whole: bool) -> None:
        def start() -> tuple[Any, Any]:
            model = bench.whole() if whole else bench.adapted()
            return model, torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1.0)

        model, optimizer = start()
        with bench.repo.training(model, "x", save_state=True, optimizer=optimizer):
            nudge(model)
        model, _ = start()
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        options: dict[str, Any] = {
            "resume": "main",
            "save_state": True,
            "optimizer": torch.optim.AdamW([*before.values()]),
        }
        with pytest.raises(rblstore.ConflictError), bench.repo.training(model, "x", **options):
            pass
        assert all(torch.equal(before[name], one) for name, one in model.named_parameters())

    def test_the_step_is_that_of_the_state(self, bench: Bench) -> None:
        commits = []
        for branch, steps in (("one", 3), ("two", 7)):
            bench.repo.switch(branch, create=True, start="main")
            model = bench.adapted()
            optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1.0)
            options: dict[str, Any] = {"save_state": True, "optimizer": optimizer}
            with bench.repo.training(model, "x", **options) as run:
                nudge(model)  # both come to the same values
                for _ in range(steps):
                    run.step()
            commits.append(run.commits[-1].commit)
        for commit, steps in zip(commits, (3, 7), strict=True):
            with bench.repo.training(bench.adapted(), "x", resume=commit, **options) as run:
                assert run.steps == steps


def test_a_compiled_or_wrapped_model_is_the_model(bench: Bench) -> None:
    model = bench.adapted()
    wrap: Callable[[Any], Any] = torch.nn.DataParallel
    with bench.repo.training(wrap(model), "polite") as run:
        nudge(model)
        run.step()
    assert bench.repo.commit("again", behaviors={"polite": model}, allow_empty=True).slots == run.commits[-1].slots
