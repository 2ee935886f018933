"""Stored tensors decoded straight into the memory that a model will use."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rblstore.objects.content_records import StoredTensor
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.writing import wrong_size
from rblstore.repository import Store
from rblstore.storage.decoding import Wanted, read_contents

if TYPE_CHECKING:
    import torch


def are_plain(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether torch has every element type."""
    from rblstore.live.binding import DTYPES

    return all(tensor.dtype in DTYPES for tensor in tensors.values())


class TensorReading:
    """Tensors being read in threads, while the caller does something else. A context manager: leaving it waits.

    Args:
        store: The repository.
        tensors: Which, by name; their element types are such that :func:`are_plain`.
        progress: Is told bytes read, from another thread.

    Raises:
        CorruptError: A content is missing, or is not as large as its element type and shape say.
    """

    def __init__(self, store: Store, tensors: Mapping[str, StoredTensor], progress: Progress | None) -> None:
        self._store = store
        self._stored = tensors
        self._meter = Meter(progress, sum(tensor.size for tensor in tensors.values()))
        self._tensors: dict[str, torch.Tensor] = {}
        self._wanted = self._lay_out()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="rbl-load")
        self._ended = False
        self._reading: Future[None] = self._executor.submit(self._read)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._executor.shutdown(wait=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of them, by name, once every digest was compared.

        Raises:
            CorruptError: Stored bytes are damaged.
        """
        self._reading.result()
        return self._tensors

    def _lay_out(self) -> list[Wanted]:
        """Allocates the tensors, equal ones apart, each at an address that suits the processor."""
        import torch

        from rblstore.live.binding import DTYPES

        wanted = []
        contents = self._store.contents.stored(tensor.content for tensor in self._stored.values())
        for (name, stored), content in zip(self._stored.items(), contents, strict=True):
            if content.size != stored.size:
                raise wrong_size(name, content.size, stored.size)
            tensor = torch.empty(stored.shape, dtype=getattr(torch, DTYPES[stored.dtype]))
            self._tensors[name] = tensor
            room = tensor.reshape(-1).view(torch.uint8).numpy() if stored.size else None
            wanted.append(Wanted(content, out=memoryview(b"") if room is None else memoryview(room)))
        return wanted

    def _read(self) -> None:
        with closing(read_contents(self._wanted, workers=self._store.configuration.workers)) as pieces:
            for piece in pieces:
                if self._ended:
                    return
                self._meter.add("reading tensors", len(piece.data))
