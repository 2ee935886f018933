"""Tokenizers: which files make one, the digest that a probe records, and text to token ids. torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Final

from rblstore.errors import InputError
from rblstore.objects.canonical import encode_json
from rblstore.objects.ids import ContentId

# Files that decide which ids a text gets. A chat template does not: a probe's prompts are text as it stands.
TOKENIZER_FILES: Final = frozenset(
    {
        "added_tokens.json",
        "bpe.codes",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.bpe",
        "vocab.json",
        "vocab.txt",
    }
)


class UnusableTokenizerError(InputError):
    """A directory has no tokenizer that can be loaded without code of its own."""

    code: ClassVar[str] = "unusable_tokenizer"


def tokenizer_digest(files: Mapping[str, str]) -> ContentId | None:
    """A digest of the tokenizer among an identity's files.

    Args:
        files: SHA-256 in hexadecimal by path; other files than a tokenizer's are passed over.

    Returns:
        SHA-256 over one canonical JSON line a file, [path, sha256], sorted by path; None without tokenizer files.
    """
    lines = sorted((path, str(sha)) for path, sha in files.items() if path in TOKENIZER_FILES)
    if not lines:
        return None
    return ContentId(hashlib.sha256(b"".join(encode_json(list(line)) + b"\n" for line in lines)).hexdigest())


def load_tokenizer(directory: Path) -> Callable[[str], list[int]]:
    """The text to token ids function of a directory's tokenizer, special tokens as the tokenizer adds them itself.

    Args:
        directory: Holds the tokenizer's files and the model's config.

    Raises:
        UnusableTokenizerError: None there, or one that only code beside it could run.
    """
    from transformers import AutoTokenizer

    from rblstore.checkpoints.quiet import quiet

    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise UnusableTokenizerError(
            f"{directory.name}: there are no tokenizer files",
            object=str(directory),
            hint="Give the probe token ids in place of text.",
        )
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UnusableTokenizerError(
            f"{directory.name}: its tokenizer cannot be loaded: {error}",
            object=str(directory),
            hint="Give the probe token ids in place of text.",
        ) from error

    def encode(text: str) -> list[int]:
        with quiet():
            return [int(token) for token in tokenizer.encode(text)]

    return encode
