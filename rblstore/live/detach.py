"""Takes behaviors out of a live model, by reference: nothing is subtracted, whatever was replaced is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from rblstore.checkpoints.attaching import LIBRARY_ERRORS, UnattachableError, activate
from rblstore.checkpoints.ledger import LEFT_BEHIND, Attached, Ledger, forget_ledger, ledger_of
from rblstore.checkpoints.live_names import slot_name
from rblstore.checkpoints.plain_view import plain_model, plain_modules, plain_owner, plain_tensors, unwrapped
from rblstore.checkpoints.quiet import quiet
from rblstore.errors import ConflictError, NotFoundError
from rblstore.live.binding import same_bits

Restore = Callable[[str], torch.Tensor | None]


class NotAttachedError(NotFoundError):
    """The model has no behavior of that name."""

    code: ClassVar[str] = "not_attached"


class UnrestorableError(ConflictError):
    """A tensor that a behavior replaced cannot be put back."""

    code: ClassVar[str] = "unrestorable"


def detach(model: nn.Module, names: Iterable[str], *, restore: Restore) -> nn.Module:
    """Takes behaviors out of a live model.

    The adapters' parameters go; tensors of the model itself that attaching them replaced get the value that ``restore``
    gives. Behaviors that stay remain active, in their order and with their weights. With the last one every wrapper
    goes too: each module has its own children again, as before anything was attached.

    Args:
        model: What rblstore's attach or load returned, or another PEFT model (then all of its tensors are compared with
            what ``restore`` gives).
        names: The slots to take out.
        restore: Gives the value beneath all behaviors of a tensor by its name in the plain model, or None where nothing
            is stored for it; see :meth:`rblstore.live.binding.Binding.restorer`.

    Returns:
        The plain transformers model where nothing is left, else the same PEFT model.

    Raises:
        NotAttachedError: A name is not on the model.
        UnrestorableError: A replaced tensor has no stored value, or a behavior that stays lies upon it.
    """
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return model
    ledger = ledger_of(model)
    present = [slot_name(live) for live in getattr(model, "peft_config", {})]
    if ledger is not None:
        present = [entry.slot for entry in ledger.attached]
    for name in wanted:
        if name not in present:
            raise NotAttachedError(f"no behavior {name!r} is on the model", object=name)
    if len(wanted) == len(present):
        return _detach_all(model, ledger, restore)
    if ledger is None:
        raise UnattachableError(
            "the model has adapters that rblstore did not attach: they can only be taken out together",
            hint="Name all of them.",
        )
    return _detach_some(model, ledger, wanted, restore)


def _detach_all(model: nn.Module, ledger: Ledger | None, restore: Restore) -> nn.Module:
    if ledger is None:
        plain = _unwrap(model)
        _put_differing_back(plain, restore)
        return plain
    names = {name for entry in ledger.attached for name in entry.replaced} | _merged_names(model)
    values = _values(model, sorted(names), restore)
    plain = ledger.plain.put_back()
    _write(plain, values)
    ledger.attached.clear()
    forget_ledger(model)
    return plain


def _detach_some(model: Any, ledger: Ledger, wanted: Sequence[str], restore: Restore) -> nn.Module:
    gone = [entry for entry in ledger.attached if entry.slot in wanted]
    stay = [entry for entry in ledger.attached if entry.slot not in wanted]
    # Values are fetched before anything is touched, so that a failure leaves the model as it was.
    values = _values(model, _uncovered(ledger.attached, gone), restore)
    with quiet():
        try:
            # PEFT refuses to delete beside several active adapters where one replaces a module: leave one active.
            model.base_model.set_adapter([stay[0].live], inference_mode=True)
            for entry in gone:
                model.delete_adapter(entry.live)
        except LIBRARY_ERRORS as error:
            raise UnattachableError(f"PEFT cannot delete {', '.join(wanted)}: {error}", object=wanted[0]) from error
    _strip_empty_wrappers(model)
    _write(model, values)
    ledger.attached[:] = stay
    activate(model, ledger)
    left: nn.Module = model
    return left


def _uncovered(order: Sequence[Attached], gone: Sequence[Attached]) -> list[str]:
    """Names that the behaviors that go replaced and none that stays replaced after them."""
    names = set()
    for place, entry in enumerate(order):
        if entry not in gone:
            continue
        for name in entry.replaced:
            others = [other for other in order if other not in gone and name in other.replaced]
            if not others:
                names.add(name)
            elif not any(other in order[place + 1 :] for other in others):
                raise UnrestorableError(
                    f"{entry.slot!r} replaced {name!r} over {others[-1].slot!r}, whose value is no longer there",
                    object=name,
                    hint="Load the composition without it in place of detaching it.",
                )
    return sorted(names)


def _merged_names(model: nn.Module) -> set[str]:
    """Names of base tensors into which somebody merged an adapter."""
    merged = [module for module in model.modules() if getattr(module, "merged_adapters", None)]
    owners = {id(unwrapped(module)) for module in merged}
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in plain_modules(model)
        if id(module) in owners
        for name, _ in module.named_parameters(recurse=False)
    }


def _values(model: nn.Module, names: Sequence[str], restore: Restore) -> dict[str, torch.Tensor]:
    found = {}
    for name in names:
        value = restore(name)
        if value is None:
            raise UnrestorableError(
                f"{name!r} was replaced and nothing is stored to put back",
                object=name,
                hint="Load the composition anew in place of detaching.",
            )
        found[name] = value
    return found


def put_values(plain: nn.Module, names: Sequence[str], restore: Restore) -> None:
    """Gives tensors of a plain model the values beneath all behaviors, in the memory that they have.

    Args:
        plain: The model, with nothing attached.
        names: Of its tensors.
        restore: See :func:`detach`.

    Raises:
        UnrestorableError: Nothing is stored for one; none is written.
    """
    _write(plain, _values(plain, names, restore))


def _put_differing_back(plain: nn.Module, restore: Restore) -> None:
    """Compares every tensor with what is stored, one at a time, and writes those that differ."""
    for name, live in plain_tensors(plain).items():
        value = restore(name)
        if value is not None and (live.shape != value.shape or not same_bits(value.to(live), live)):
            _write(plain, {name: value})


def _write(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    tensors = plain_tensors(model)
    with torch.no_grad():
        for name, value in values.items():
            live = tensors[name]
            if live.shape == value.shape:
                live.copy_(value)  # rounds exactly as loading does, and keeps the memory that the tensor lies in
            else:
                live.data = value.to(device=live.device, dtype=live.dtype, copy=True)
                _resize(model, name, value.shape[0])


def _resize(model: nn.Module, name: str, rows: int) -> None:
    """Makes an embedding's own numbers agree with rows that were put back."""
    owner, _ = plain_owner(model, name)
    for attribute in ("num_embeddings", "out_features"):
        if isinstance(getattr(owner, attribute, None), int):
            setattr(owner, attribute, rows)
    config = getattr(plain_model(model), "config", None)
    if config is not None and isinstance(owner, nn.Embedding):
        config.get_text_config().vocab_size = rows


def _strip_empty_wrappers(model: nn.Module) -> None:
    """Replaces wrappers that hold no adapter any more by what they wrap."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for parent in list(plain_model(model).modules()):
        for name, child in list(parent._modules.items()):  # noqa: SLF001 - also the second names of one module
            if isinstance(child, (BaseTunerLayer, AuxiliaryTrainingWrapper)) and not isinstance(
                parent, (BaseTunerLayer, AuxiliaryTrainingWrapper)
            ):
                _strip(parent, name, child)


def _strip(parent: nn.Module, name: str, child: Any) -> None:
    from peft.utils.other import AuxiliaryTrainingWrapper

    holder = child.token_adapter if hasattr(child, "token_adapter") else child
    inner = child.original_module if isinstance(child, AuxiliaryTrainingWrapper) else getattr(child, "base_layer", None)
    if isinstance(inner, nn.Module) and not _holds_adapters(holder):
        parent._modules[name] = inner  # noqa: SLF001 - setattr would run PEFT's own hooks on the wrapper


def _holds_adapters(layer: Any) -> bool:
    for name in layer.adapter_layer_names:
        held: Any = layer
        for part in name.split("."):
            held = getattr(held, part, None)
        if held is not None and (len(held) if hasattr(held, "__len__") else True):
            return True
    return False


def _unwrap(model: nn.Module) -> nn.Module:
    """The plain model inside a PEFT model that rblstore did not attach, every wrapper replaced by what it wraps."""
    plain = unwrapped(plain_model(model))
    seen: set[int] = set()

    def walk(module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        for name, child in list(module._modules.items()):  # noqa: SLF001 - see above
            if child is None:
                continue
            inner = unwrapped(child)
            if inner is not child:
                module._modules[name] = inner  # noqa: SLF001
            walk(inner)

    walk(plain)
    for name in LEFT_BEHIND:
        if name in vars(plain):
            delattr(plain, name)
    for tensor in plain_tensors(plain).values():
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            tensor.requires_grad_(True)
    return plain
