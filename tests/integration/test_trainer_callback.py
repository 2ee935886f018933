"""``RblCallback`` on a real ``transformers.Trainer``: commits, claims, failures, and a resume that changes no bit."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

import rblstore
from rblstore.integrations.transformers import RblCallback, resume_checkpoint
from rblstore.operations.trainer_checkpoint import NotATrainerStateError

STEPS = 7


class Data(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Twelve sequences: six batches of two, and so three steps of two batches an epoch."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = (torch.arange(8) * (index + 3)) % 90 + 3
        return {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}


def lora(model: Any) -> Any:
    import peft

    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(model, config)


def whole(model: Any) -> Any:
    return model


def make(kind: str) -> Any:
    """The base model of a kind, in evaluation mode."""
    return tiny_models.llama() if kind == "lora" else tiny_models.gpt2()


WRAP = {"lora": lora, "whole": whole}


def trained(model: Any, folder: Path, *callbacks: Any, resume: str | None = None, **options: Any) -> Any:
    """Trains a model with dropout, shuffled data, accumulation and a linear schedule."""
    from transformers import Trainer, TrainingArguments

    settings: dict[str, Any] = {
        "max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.01,
        "warmup_steps": 2, "weight_decay": 0.01, "logging_steps": 2, "save_strategy": "no", "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "seed": 11, "include_num_input_tokens_seen": "all", **options,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(folder / "out"), **settings)
    data = Data()
    trainer = Trainer(model=model, args=args, train_dataset=data, eval_dataset=data, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def store_of(folder: Path, kind: str) -> rblstore.Repository:
    repo = rblstore.init(folder / "store")
    repo.commit("base", identity=tiny_models.save(make(kind), folder / "base"))
    return repo


@pytest.fixture(scope="module", params=["lora", "whole"])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training with a commit at every step, and the weights that it ended with."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    repo = store_of(folder, kind)
    callback = RblCallback(
        repo,
        "polite",
        every=1,
        save_state=True,
        dataset="tiny",
        dataset_license="cc0-1.0",
        meta={"team": "a"},
        author="Ada",
    )
    model = WRAP[kind](make(kind))
    trainer = trained(model, folder, callback, eval_strategy="steps", eval_steps=2)
    return kind, folder, repo, callback, weights(model), trainer


def test_every_step_is_committed_with_what_is_known(story: Any) -> None:
    kind, _, repo, callback, final, trainer = story
    assert [one.message.split(",")[0] for one in callback.commits] == [
        f"polite: step {at}" for at in range(1, STEPS + 1)
    ]
    assert [info.step for info in repo.training_states()] == list(range(1, STEPS + 1))
    claims = {claim.key: claim.value for claim in repo.show("main").behaviors[0].claims}
    expected = {
        "dataset": "tiny", "dataset_license": "tiny=cc0-1.0", "meta.team": "a", "meta.step": "7", "meta.seed": "11",
        "meta.gradient_accumulation_steps": "2", "meta.max_steps": "7", "meta.optimizer": "adamw_torch",
        "meta.tokens": str(trainer.state.num_input_tokens_seen),
    }  # fmt: skip
    assert {key: claims.get(key) for key in expected} == expected or claims.get("meta.optimizer") != "adamw_torch"
    assert claims["meta.tokens"] != "0"
    assert float(claims["meta.epoch"]) == pytest.approx(7 / 3)
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    assert float(claims["meta.loss"]) == losses[-1]
    assert {"meta.torch", "meta.transformers", "meta.accelerate", "meta.learning_rate"} <= claims.keys()
    assert repo.show("main~1").behaviors[0].form == ("adapter" if kind == "lora" else "overlay")
    loaded = repo.load("main")
    names = dict(loaded.named_parameters())
    trained_now = {name: tensor for name, tensor in final.items() if name.replace(".default.", ".polite.") in names}
    assert trained_now, "some parameters go by the same names"
    for name, tensor in trained_now.items():
        assert torch.equal(names[name.replace(".default.", ".polite.")], tensor), name


# Steps 2, 4 and 6 are logged and evaluated; 3 and 6 end an epoch.
@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_resumed_is_uninterrupted(story: Any, step: int, tmp_path: Path) -> None:
    kind, _, repo, _, final, whole_run = story
    torch.manual_seed(999 + step)
    model = WRAP[kind](make(kind))
    revision = str(next(info.commit for info in repo.training_states() if info.step == step))
    with resume_checkpoint(repo, revision) as folder:
        assert Path(folder).name == f"checkpoint-{step}"
        trainer = trained(model, tmp_path, resume=folder, eval_strategy="steps", eval_steps=2)
    assert not Path(folder).exists()
    assert trainer.state.global_step == STEPS
    differing = [name for name, tensor in weights(model).items() if not torch.equal(tensor, final[name])]
    assert not differing
    last = [[logs for logs in one.state.log_history if "eval_loss" in logs][-1] for one in (whole_run, trainer)]
    assert last[0]["eval_loss"] == last[1]["eval_loss"]


def test_resuming_goes_on_committing(tmp_path: Path) -> None:
    repo = store_of(tmp_path, "lora")
    first = RblCallback(repo, "polite", every=3, save_state=True, branch="run")
    repo.create_branch("run")
    model = lora(make("lora"))
    trained(model, tmp_path, first)
    final, tip = weights(model), repo.resolve("run")
    assert [info.step for info in repo.training_states()] == [3, 6, 7]
    assert repo.resolve("main") != tip
    middle = str(repo.training_states()[0].commit)
    repo.create_branch("again", middle)
    second = RblCallback(repo, "polite", every=3, save_state=True, branch="again")
    model = lora(make("lora"))
    with second.resume_checkpoint(middle) as folder:
        trained(model, tmp_path, second, resume=folder)
    assert equal(weights(model), final)
    assert [one.message.split(",")[0] for one in second.commits] == ["polite: step 6", "polite: step 7"]
    before, after = repo.show("run").behaviors[0], repo.show("again").behaviors[0]
    assert after.behavior == before.behavior, "the same bytes"
    claims = {claim.key: claim.value for claim in after.claims}
    assert claims["meta.resumed_from"] == middle
    one, other = (repo.load_state(name) for name in ("run", "again"))
    assert repr(one["random"]) == repr(other["random"])


def test_only_the_end_is_committed_verified_and_reverted(tmp_path: Path) -> None:
    repo = store_of(tmp_path, "lora")
    repo.add_probe("two", [{"id": "a", "tokens": [5, 17, 80]}, {"id": "b", "tokens": [7, 1]}])
    callback = RblCallback(repo, "polite", every=1000, probe="two")
    trained(lora(make("lora")), tmp_path, callback)
    assert [one.message.split(",")[0] for one in callback.commits] == ["polite: step 7"]
    assert callback.verification is not None
    assert callback.verification.verdict == "exact"
    assert not repo.training_states()
    with pytest.raises(rblstore.NotFoundError, match="no training state"), resume_checkpoint(repo):
        pass
    assert repo.revert(behavior="polite").verdict == "exact"


class Failing:
    """Raises at a step."""

    @staticmethod
    def at(step: int) -> Any:
        from transformers import TrainerCallback

        class Raise(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                if state.global_step == step:
                    raise RuntimeError("out of luck")

        return Raise()


def test_a_failed_training_leaves_nothing_hanging(tmp_path: Path) -> None:
    repo = store_of(tmp_path, "lora")
    model = lora(make("lora"))
    with RblCallback(repo, "polite", every=2) as callback:
        with pytest.raises(RuntimeError, match="out of luck"):
            trained(model, tmp_path, callback, Failing.at(5))
        assert callback.run is not None
        worker = callback.run._worker._thread  # type: ignore[union-attr]
    assert not worker.is_alive()
    assert [one.message.split(",")[0] for one in callback.commits] == ["polite: step 2", "polite: step 4"]
    trained(model, tmp_path, callback)  # the model and the callback can train again
    assert callback.commits[-1].message.startswith("polite: step 7")


def test_a_callback_that_goes_away_ends_its_run(tmp_path: Path) -> None:
    gc.collect()  # else what others left open is warned about in the midst of training, and pytest keeps those frames
    repo = store_of(tmp_path, "lora")
    callback = RblCallback(repo, "polite", every=1)
    with pytest.raises(RuntimeError, match="out of luck") as caught:
        trained(lora(make("lora")), tmp_path, callback, Failing.at(2))
    worker = callback.run._worker._thread  # type: ignore[union-attr]
    assert worker.is_alive()
    del callback, caught
    gc.collect()
    assert not worker.is_alive()
    assert repo.log(limit=1)[0].message.startswith("polite: step 2")


def test_a_callback_that_trains_again_ends_the_run_before(tmp_path: Path) -> None:
    repo = store_of(tmp_path, "lora")
    callback = RblCallback(repo, "polite", every=2)
    model = lora(make("lora"))
    with pytest.raises(RuntimeError, match="out of luck"):
        trained(model, tmp_path, callback, Failing.at(3))
    trained(model, tmp_path, callback)
    assert [one.message.split(",")[0] for one in callback.commits][-1] == "polite: step 7"


def test_the_guard_stops_training(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Write(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, **given: Any) -> None:
            if state.global_step == 3:
                with torch.no_grad():
                    model.get_base_model().model.norm.weight.add_(1)

    repo = store_of(tmp_path, "lora")
    with RblCallback(repo, "polite", every=100, guard_every=1) as callback:
        with pytest.raises(rblstore.IdentityMutated, match="norm"):
            trained(lora(make("lora")), tmp_path, callback, Write())
        assert callback.commits == []
    with RblCallback(repo, "polite", guard="record", guard_every=1) as callback:
        trained(lora(make("lora")), tmp_path, callback, Write(), max_steps=5)
        assert [finding.name for finding in callback.findings] == ["model.norm.weight"]


def test_an_error_behind_training_surfaces_at_the_next_step(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    repo = store_of(tmp_path, "lora")

    class Move(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 1:
                repo.commit("elsewhere", allow_empty=True)

    with RblCallback(repo, "polite", every=2) as callback, pytest.raises(rblstore.ConflictError, match="moved"):
        trained(lora(make("lora")), tmp_path, callback, Move())
    assert [one.message for one in repo.log()] == ["elsewhere", "base"]


def test_other_processes_do_not_commit(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    repo = store_of(tmp_path, "lora")
    callback = RblCallback(repo, "polite", every=1, save_state=True)
    args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to=[])
    state, control = TrainerState(is_world_process_zero=False, global_step=1, epoch=0.5), TrainerControl()
    model = lora(make("lora"))
    for event in ("train_begin", "step_begin", "step_end", "log", "evaluate", "epoch_end", "train_end"):
        getattr(callback, f"on_{event}")(args, state, control, model=model, optimizer=None, lr_scheduler=None)
    assert callback.run is None
    assert (callback.commits, callback.skipped, callback.findings, callback.verification) == ([], [], (), None)


def test_the_best_model_at_the_end_has_no_state(tmp_path: Path) -> None:
    repo = store_of(tmp_path, "lora")
    callback = RblCallback(repo, "polite", every=4, save_state=True)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    every_two = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = trained(lora(make("lora")), tmp_path, callback, learning_rate=0.05, **best, **every_two)
    assert trainer.state.best_global_step != STEPS
    claims = {claim.key: claim.value for claim in repo.show("main").behaviors[0].claims}
    assert claims["meta.best_step"] == str(trainer.state.best_global_step)
    assert [info.step for info in repo.training_states()] == [4]


def test_another_loops_state_is_refused(tmp_path: Path) -> None:
    repo = store_of(tmp_path, "lora")
    for tree in ({"a": 1}, [1], {"extra": {"trainer": {}}}):
        repo.store_state(tree)
        with pytest.raises(NotATrainerStateError), resume_checkpoint(repo):
            pass
    repo.store_state({"extra": {"trainer": {"behavior": "none", "state": {"global_step": 1}}}})
    with pytest.raises(NotATrainerStateError, match="no behavior 'none'"), resume_checkpoint(repo):
        pass


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    repo = store_of(tmp_path, "lora")
    for options in ({"every": 0}, {"on_busy": "wait"}, {"guard": "no"}, {"meta": {"": "x"}}, {"branch": "../x"}):
        with pytest.raises(rblstore.RblError):
            RblCallback(repo, "polite", **options)  # type: ignore[arg-type]
