"""Caps on everything that is read from outside, checked before anything is allocated (docs/format.md, Limits)."""

from __future__ import annotations

from typing import Final

RECORD_BYTES: Final = 64 << 20
RECORD_ENTRIES: Final = 4_000_000
JSON_ENTRIES: Final = 500_000
JSON_DEPTH: Final = 32
JSON_INTEGER: Final = (1 << 53) - 1
PATH_BYTES: Final = 1024
COMPONENT_BYTES: Final = 255
NAME_BYTES: Final = 255
TENSOR_NAME_BYTES: Final = 1024
TENSOR_RANK: Final = 64
MESSAGE_BYTES: Final = 1 << 20
TEXT_BYTES: Final = 64 << 10
SAFETENSORS_HEADER_BYTES: Final = 16 << 20
SAFETENSORS_HEADER_BYTES_CEILING: Final = 100_000_000
ADAPTER_CONFIG_BYTES: Final = 1 << 20
MODEL_CARD_BYTES: Final = 1 << 20
SIGNATURE_BYTES: Final = 16 << 20
KEY_BYTES: Final = 1 << 20
FRAME_BYTES: Final = 4 << 20
FRAME_BYTES_CEILING: Final = 64 << 20
ZSTD_WINDOW_BYTES: Final = 8 << 20
PACK_INDEX_ENTRIES: Final = 8_000_000
CONTENT_FRAMES: Final = 262_144
