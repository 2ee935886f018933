"""The state of a training run beside its weights: taken as a tree, and put back exactly, or not at all.

torch is imported inside functions only: looking at stored states needs none of this.
"""

from __future__ import annotations

import random as python_random
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Final

from rblstore.checkpoints.state_tree import copied_tree
from rblstore.errors import ConflictError

# What np.random.get_state gives: a name, the key, a position and what is left of a pair of normal numbers.
_NUMPY_PARTS: Final = 5
_NUMPY_KEY: Final = (624,)
_LIBRARY_ERRORS: Final = (ValueError, KeyError, TypeError, RuntimeError, AttributeError, IndexError)


class StateMismatchError(ConflictError):
    """A training state does not fit what it is to be put into; nothing was changed."""

    code: ClassVar[str] = "state_mismatch"


def capture_state(
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    extra: Any = None,
    *,
    model: Any = None,
    random: bool = True,
    generators: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a training run needs besides the weights to go on exactly from here.

    Tensors are those of the optimizer themselves, not copies: store the tree, or take
    :func:`rblstore.checkpoints.state_tree.copied_tree` of it, before the next step.

    Args:
        optimizer: A torch optimizer, or one that accelerate wrapped.
        scheduler: A learning rate scheduler.
        scaler: A ``GradScaler``.
        extra: Anything that a state may hold, kept as it is.
        model: Whose parameters the optimizer has: their names are kept and compared when the state is put back.
        random: Whether to take the global generators: torch's (CPU, and every CUDA device that is in use), numpy's and
            Python's.
        generators: Others by name: ``torch.Generator``, ``numpy.random.Generator`` or ``random.Random``.
    """
    tree: dict[str, Any] = {}
    if optimizer is not None:
        inner = _unwrapped(optimizer)
        tree["optimizer"] = {
            "class": type(inner).__name__,
            "parameters": _parameters(inner, model),
            "state": inner.state_dict(),
        }
    if scheduler is not None:
        inner = _unwrapped(scheduler)
        tree["scheduler"] = {"class": type(inner).__name__, "state": inner.state_dict()}
    if scaler is not None:
        tree["scaler"] = scaler.state_dict()
    if random:
        tree["random"] = _global_states()
    if generators:
        tree["generators"] = {name: _generator_state(name, one) for name, one in generators.items()}
    if extra is not None:
        tree["extra"] = extra
    return tree


def restore_state(
    tree: Any,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    *,
    model: Any = None,
    random: bool = True,
    generators: Mapping[str, Any] | None = None,
) -> Any:
    """Puts a state back into what is given; the rest of it is passed over.

    Args:
        tree: What :func:`capture_state` gave. The tensors are copied.
        optimizer: As for :func:`capture_state`: of the same class, with the same parameter groups and shapes.
        scheduler: Of the same class.
        scaler: Enabled if it was.
        model: Whose parameters the optimizer has; with it, names are compared too where the state has them.
        random: Whether to set the global generators.
        generators: Others, by name.

    Returns:
        What ``extra`` was.

    Raises:
        StateMismatchError: It does not fit; nothing was changed.
    """
    if not isinstance(tree, dict):
        raise StateMismatchError("this is no training state", hint="Pass what repo.load_state returned.")
    undo: list[Callable[[], None]] = []
    steps: list[Callable[[], None]] = []
    try:
        if optimizer is not None:
            inner = _unwrapped(optimizer)
            saved = _part(tree, "optimizer")
            _check_optimizer(inner, saved, model)
            undo.append(_optimizer_undo(inner))
            steps.append(lambda: _load_optimizer(inner, saved["state"]))
        if scheduler is not None:
            plan = _unwrapped(scheduler)
            saved_plan = _part(tree, "scheduler")
            _check_scheduler(plan, saved_plan)
            before = copied_tree(plan.state_dict())
            undo.append(lambda: plan.load_state_dict(before))
            steps.append(lambda: plan.load_state_dict(copied_tree(saved_plan["state"])))
        if scaler is not None:
            saved_scaler, now = _part(tree, "scaler"), scaler.state_dict()
            if now.keys() != saved_scaler.keys():
                raise StateMismatchError("the gradient scaler is enabled in one of the two only", object="scaler")
            undo.append(lambda: scaler.load_state_dict(now))
            steps.append(lambda: scaler.load_state_dict(saved_scaler))
        if random:
            wanted, there = _part(tree, "random"), _global_states()
            _check_global_states(wanted)
            undo.append(lambda: _set_global_states(there))
            steps.append(lambda: _set_global_states(wanted))
        for name, generator in (generators or {}).items():
            state, earlier = _part(_part(tree, "generators"), name), _generator_state(name, generator)
            undo.append(lambda one=generator, state=earlier: _set_generator(one, state))  # type: ignore[misc]
            steps.append(lambda one=generator, state=state: _set_generator(one, state))  # type: ignore[misc]
    except _LIBRARY_ERRORS as error:
        raise StateMismatchError(f"the training state does not fit: {error}") from error
    try:
        for step in steps:
            step()
    except BaseException as error:
        for back in reversed(undo):
            with suppress(*_LIBRARY_ERRORS):
                back()
        if isinstance(error, _LIBRARY_ERRORS):
            raise StateMismatchError(f"the training state does not fit, and nothing was changed: {error}") from error
        raise
    return tree.get("extra")


def _unwrapped(one: Any) -> Any:
    """What accelerate wrapped, or the thing itself."""
    while type(one).__module__.split(".", 1)[0] == "accelerate":
        one = one.optimizer if hasattr(one, "step_was_skipped") else one.scheduler
    return one


def _part(tree: Mapping[str, Any], name: str) -> Any:
    if name not in tree:
        raise StateMismatchError(
            f"the training state has no {name}", object=name, hint="Put back only what was captured."
        )
    return tree[name]


# -- optimizers and schedulers -----------------------------------------------------------------------------------


def _parameters(optimizer: Any, model: Any) -> list[list[list[Any]]]:
    """By group and in order: the name of each parameter, or None, and its shape."""
    named = {} if model is None else {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        [[named.get(id(parameter)), list(parameter.shape)] for parameter in group["params"]]
        for group in optimizer.param_groups
    ]


def _check_optimizer(optimizer: Any, saved: Mapping[str, Any], model: Any) -> None:
    now = _parameters(optimizer, model)
    before = saved["parameters"]
    if saved["class"] != type(optimizer).__name__:
        raise StateMismatchError(
            f"the state is that of {saved['class']}, the optimizer is {type(optimizer).__name__}", object="optimizer"
        )
    if len(before) != len(now):
        raise StateMismatchError(
            f"the state has {len(before)} parameter groups, the optimizer {len(now)}", object="optimizer"
        )
    for at, (old, new) in enumerate(zip(before, now, strict=True)):
        if len(old) != len(new):
            raise StateMismatchError(
                f"group {at} of the state has {len(old)} parameters, that of the optimizer {len(new)}",
                object=f"optimizer.param_groups.{at}",
            )
        for index, ((old_name, old_shape), (new_name, new_shape)) in enumerate(zip(old, new, strict=True)):
            where = old_name or new_name or f"parameter {index} of group {at}"
            if old_shape != new_shape:
                raise StateMismatchError(f"{where} was of shape {old_shape}, and is {new_shape}", object=where)
            if old_name is not None and new_name is not None and old_name != new_name:
                raise StateMismatchError(f"{new_name} stands where {old_name} was", object=new_name)
    count = sum(map(len, now))
    state = saved["state"]
    if [len(group["params"]) for group in state["param_groups"]] != [len(group) for group in now]:
        raise StateMismatchError("the state contradicts itself about its parameter groups", object="optimizer")
    if any(type(key) is int and not 0 <= key < count for key in state["state"]):
        raise StateMismatchError("the state is about parameters that it does not have", object="optimizer")


def _optimizer_undo(optimizer: Any) -> Callable[[], None]:
    state, groups = optimizer.state, optimizer.param_groups

    def undo() -> None:
        # load_state_dict makes new ones and leaves these as they were.
        optimizer.state, optimizer.param_groups = state, groups

    return undo


def _load_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    import torch

    copy = copied_tree(dict(saved))
    optimizer.load_state_dict(copy)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in copy["state"].items():
        if type(index) is not int or not isinstance(entry, dict):
            continue
        live = optimizer.state[parameters[index]]
        for key, value in entry.items():
            # torch casts to the parameter's dtype; an optimizer that keeps fp32 beside bf16 weights would lose bits.
            if isinstance(value, torch.Tensor) and live[key].dtype != value.dtype:
                live[key] = value.to(live[key].device)


def _check_scheduler(scheduler: Any, saved: Mapping[str, Any]) -> None:
    if saved["class"] != type(scheduler).__name__:
        raise StateMismatchError(
            f"the state is that of {saved['class']}, the scheduler is {type(scheduler).__name__}", object="scheduler"
        )
    now = scheduler.state_dict()
    if differing := sorted(map(str, now.keys() ^ saved["state"].keys())):
        raise StateMismatchError(f"only one of scheduler and state has {', '.join(differing)}", object="scheduler")
    for key, value in now.items():
        stored = saved["state"][key]
        if isinstance(value, list) and (not isinstance(stored, list) or len(stored) != len(value)):
            raise StateMismatchError(f"the scheduler's {key} is not as long as the state's", object="scheduler")


# -- random generators --------------------------------------------------------------------------------------------


def _global_states() -> dict[str, Any]:
    import torch

    states: dict[str, Any] = {"python": python_random.getstate(), "torch": torch.get_rng_state()}
    if "numpy" in sys.modules:
        import numpy as np

        states["numpy"] = np.random.get_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _check_global_states(states: Mapping[str, Any]) -> None:
    """Sets them on generators that nobody uses."""
    import torch

    python_random.Random().setstate(states["python"])  # noqa: S311
    torch.Generator().set_state(states["torch"])
    if "numpy" in states:
        import numpy as np

        state = states["numpy"]
        # Some versions of NumPy read on past the end of one that is too short.
        if not isinstance(state, tuple) or len(state) != _NUMPY_PARTS or np.shape(state[1]) != _NUMPY_KEY:
            raise ValueError("the state of NumPy's generator is none of MT19937")
        np.random.RandomState().set_state(state)
    devices = states.get("cuda", [])
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(devices) > there:
        raise StateMismatchError(
            f"the state has the generators of {len(devices)} CUDA devices, and {there} are here",
            object="random.cuda",
            hint="Pass random=False to leave the generators as they are; what follows will not be the same.",
        )
    for index, state in enumerate(devices):
        torch.Generator(f"cuda:{index}").set_state(state)


def _set_global_states(states: Mapping[str, Any]) -> None:
    import torch

    python_random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "numpy" in states:
        import numpy as np

        np.random.set_state(states["numpy"])
    for index, state in enumerate(states.get("cuda", [])):
        torch.cuda.set_rng_state(state, index)


def _generator_state(name: str, generator: Any) -> Any:
    if isinstance(generator, python_random.Random):
        return generator.getstate()
    if hasattr(generator, "get_state") and hasattr(generator, "manual_seed"):
        return generator.get_state()
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    raise StateMismatchError(f"{name} is a {type(generator).__name__}, and no random generator", object=name)


def _set_generator(generator: Any, state: Any) -> None:
    if isinstance(generator, python_random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)
