"""What the public repository does with models in memory: load them, bind them, guard them, follow their training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rblstore.repository import Store

if TYPE_CHECKING:
    import torch

    from rblstore.operations.progress import Progress


class Models:
    """What :class:`rblstore.Repository` does with models in memory.

    Methods that write need :meth:`rblstore.Repository.author`, which the repository has.
    """

    _store: Store

    def tensor(self, revision: str, name: str) -> torch.Tensor:
        """One tensor of a commit's checkpoint, overlays laid on and adapters not; its digest is verified."""
        from rblstore.operations.tensor import tensor

        return tensor(self._store, revision, name)

    def load(self, revision: str = "HEAD", *, progress: Progress | None = None, **options: Any) -> Any:
        """The composition of a commit as a transformers model, behaviors attached through peft.

        Args:
            revision: Which commit.
            progress: Is told bytes read.
            options: ``dtype``, ``device``, ``attn_implementation``.

        Returns:
            A ``PreTrainedModel``, or a ``PeftModel`` where there are behaviors, in evaluation mode.
        """
        from rblstore.operations.load import load

        return load(self._store, revision, progress=progress, **options)
