"""Counting NaN in tensors as their bytes stream by."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from rblstore.errors import InputError
from rblstore.objects.dtypes import BITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# (width of a float in bytes, mask that drops the sign, largest masked value that is no NaN). An exponent of all ones
# with any bit of fraction is a NaN, so the limit is infinity's pattern; types without infinity differ.
_ABOVE: Final = {
    "F64": (8, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": (4, 0x7FFF_FFFF, 0x7F80_0000),
    "C64": (4, 0x7FFF_FFFF, 0x7F80_0000),
    "BF16": (2, 0x7FFF, 0x7F80),
    "F16": (2, 0x7FFF, 0x7C00),
    "F8_E5M2": (1, 0x7F, 0x7C),
    "F8_E4M3": (1, 0x7F, 0x7E),
    "F8_E8M0": (1, 0xFF, 0xFE),
}
# Types with one NaN, where IEEE has the negative zero.
_NEGATIVE_ZERO: Final = ("F8_E4M3FNUZ", "F8_E5M2FNUZ")
_BLOCK_BYTES: Final = 1 << 20


class NanCounter:
    """Counts the elements of one tensor that are not a number; an infinity is one.

    Args:
        dtype: Element type, as safetensors names it. Types that have no NaN always count 0.

    Attributes:
        count: NaN elements so far.

    Raises:
        InputError: The element type is not known.
    """

    def __init__(self, dtype: str) -> None:
        if dtype not in BITS:
            raise InputError(f"the element type {dtype[:32]!r} is not known", object=dtype[:32])
        self.count = 0
        self._dtype = dtype
        self._width = max(1, BITS[dtype] // 8)
        self._carry = b""
        self._counts = dtype in _ABOVE or dtype in _NEGATIVE_ZERO

    def update(self, data: memoryview | bytes | bytearray) -> None:
        """Counts in the bytes that follow; chunks may end inside an element.

        Args:
            data: Raw little-endian bytes.
        """
        if not self._counts:
            return
        view = memoryview(data)
        if view.nbytes == 0:
            return
        view = view.cast("B")
        if self._carry:
            missing = self._width - len(self._carry)
            self._carry += bytes(view[:missing])
            view = view[missing:]
            if len(self._carry) < self._width:
                return
            self._count_whole(memoryview(self._carry))
            self._carry = b""
        whole = len(view) - len(view) % self._width
        self._carry = bytes(view[whole:])
        for start in range(0, whole, _BLOCK_BYTES):
            self._count_whole(view[start : min(start + _BLOCK_BYTES, whole)])

    def _count_whole(self, view: memoryview) -> None:
        import numpy as np

        if self._dtype in _NEGATIVE_ZERO:
            self.count += int(np.count_nonzero(np.frombuffer(view, dtype=np.uint8) == 0x80))
            return
        width, mask, limit = _ABOVE[self._dtype]
        values = np.frombuffer(view, dtype=np.dtype(f"<u{width}"))
        if sys.byteorder == "big":
            values = values.astype(values.dtype.newbyteorder("="))
        # Nearly always there is none, and the largest bit pattern of either sign says so faster than a look at each.
        sign = (1 << 8 * width) - 1 - mask
        if values.max() <= sign + limit and (not sign or values.view(f"<i{width}").max() <= limit):
            return
        masked = values & values.dtype.type(mask)
        found: NDArray[np.bool_] = np.greater(masked, limit)
        if self._dtype == "C64":
            found = np.logical_or(found[0::2], found[1::2])
        self.count += int(np.count_nonzero(found))
