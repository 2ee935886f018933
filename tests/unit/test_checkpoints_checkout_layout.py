from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from rblstore.checkpoints.checkout_layout import (
    CheckoutFile,
    CheckoutManifest,
    CheckoutSlot,
    LayoutCollisionError,
    plan_checkout,
)
from rblstore.errors import InputError, UsageError
from rblstore.objects.content_records import Behavior, FileEntry, Identity
from rblstore.objects.ids import BehaviorId, CommitId, CompositionId, ContentId, IdentityId


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def files(*paths: str) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(path, ContentId(digest(path)), len(path)) for path in sorted(paths))


def identity(*paths: str) -> Identity:
    return Identity(files(*paths), ContentId(digest("root")))


def behavior(*paths: str) -> Behavior:
    return Behavior("adapter", files(*paths), ())


MANIFEST = CheckoutManifest(
    "adapters",
    CommitId(digest("commit")),
    CompositionId(digest("composition")),
    IdentityId(digest("identity")),
    (
        CheckoutSlot("zeta", BehaviorId(digest("z")), 1.0, "behaviors/zeta"),
        CheckoutSlot("a", BehaviorId(digest("a")), -0.5, None),
    ),
    (
        CheckoutFile("config.json", ContentId(digest("c")), 2),
        CheckoutFile("é/model.safetensors", ContentId(digest("m")), 9),
    ),
)


def body() -> Any:
    return json.loads(MANIFEST.encode())


def test_a_manifest_reads_back_as_written() -> None:
    assert CheckoutManifest.parse(MANIFEST.encode()) == MANIFEST
    assert MANIFEST.encode().startswith(b'{\n  "rblstore_checkout": 1,\n  "form": "adapters",\n')
    assert body()["slots"][1] == {"name": "a", "behavior": digest("a"), "weight": -0.5, "path": None}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rblstore_checkout",), 2),
        (("rblstore_checkout",), "1"),
        (("form",), "other"),
        (("commit",), "abc"),
        (("commit",), None),
        (("extra",), 1),
        (("files",), None),
        (("files", 0, "path"), "../x"),
        (("files", 0, "path"), "/etc/passwd"),
        (("files", 0, "path"), "ü"),
        (("files", 0, "size"), -1),
        (("files", 0, "size"), True),
        (("files", 0, "sha256"), "A" * 64),
        (("files", 0, "mode"), 7),
        (("files", 1, "path"), "config.json"),
        (("files", 0, "path"), "É/model.safetensors"),
        (("slots", 0, "path"), "../../home"),
        (("slots", 0, "path"), "behaviors/other"),
        (("slots", 0, "name"), "a/b"),
        (("slots", 0, "name"), "A"),
        (("slots", 0, "weight"), "1"),
        (("slots", 0, "weight"), None),
    ],
)
def test_what_no_checkout_writes_is_refused(path: tuple[Any, ...], value: Any) -> None:
    changed = body()
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(InputError):
        CheckoutManifest.parse(json.dumps(changed).encode())


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"\xff", b'{"rblstore_checkout":1,"rblstore_checkout":1}', b"null"]
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"rbl-composition\.json"):
        CheckoutManifest.parse(data)


def of(checkpoint: Identity) -> list[tuple[str, FileEntry]]:
    return [(entry.path, entry) for entry in checkpoint.files]


def test_files_go_to_their_places() -> None:
    base, first, second = (
        identity("config.json", "sub/x"),
        behavior("adapter_config.json"),
        behavior("adapter_config.json", "README.md"),
    )
    planned = plan_checkout(of(base), [("b", 1.0, first), ("a", 0.5, second)], "adapters")
    assert [(file.path, file.owner, file.source.path) for file in planned] == [
        ("behaviors/a/README.md", "a", "README.md"),
        ("behaviors/a/adapter_config.json", "a", "adapter_config.json"),
        ("behaviors/b/adapter_config.json", "b", "adapter_config.json"),
        ("config.json", None, "config.json"),
        ("sub/x", None, "sub/x"),
    ]
    assert [file.path for file in plan_checkout(of(base), [("b", 1.0, first)], "merged")] == ["config.json", "sub/x"]


@pytest.mark.parametrize(
    "path",
    ["behaviors/x/adapter_config.json", "behaviors", "Behaviors/x", "rbl-composition.json", "RBL-Composition.json"],
)
def test_an_identity_in_the_checkout_s_own_places_is_refused(path: str) -> None:
    for form in ("adapters", "merged"):
        with pytest.raises(LayoutCollisionError, match="where a checkout keeps its own") as caught:
            plan_checkout(of(identity("config.json", path)), [], form)  # type: ignore[arg-type]
        assert caught.value.object == path
        assert caught.value.exit_code == 4


def test_paths_that_become_too_long_or_names_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="longer than"):
        plan_checkout(of(identity("c")), [("n" * 200, 1.0, behavior("/".join(["d" * 200] * 5)))], "adapters")
    with pytest.raises(UsageError):
        plan_checkout(of(identity("c")), [("../x", 1.0, behavior("f"))], "adapters")
    with pytest.raises(InputError, match="another way"):
        plan_checkout(of(identity("c")), [("x", 1.0, behavior("f")), ("X", 1.0, behavior("g"))], "adapters")
