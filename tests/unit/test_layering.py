"""The rooms of the design, enforced from the syntax tree: who imports whom, and what no room below ``cli/`` may do."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rblstore"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
every_file = pytest.mark.parametrize("path", FILES, ids=NAMES)

# Imports go one way, upwards in this list; rooms on one line do not import each other.
ORDER = (
    ("errors",),
    ("objects",),
    ("storage", "catalog", "checkpoints", "divergence", "provenance"),
    ("repository",),
    ("live",),
    ("operations",),
    ("api",),
    ("integrations", "report"),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
# Modules beside the rooms, and the room whose rules they live by.
BESIDE = {
    "configuration": "repository",
    "contents": "repository",
    "forgotten": "repository",
    "opening": "repository",
    "entry": "api",
    "maintenance": "api",
    "models": "api",
    "studies": "api",
    "audits": "api",
    "revisions": "repository",
    "transaction": "repository",
    "__init__": "api",
    "__main__": "cli",
}

HEAVY = {"torch", "transformers", "peft", "matplotlib"}
HEAVY_ROOMS = {"checkpoints", "divergence", "live", "integrations", "report"}
HEAVY_NOWHERE = {"errors", "objects", "storage", "catalog", "provenance"}
CODE_LOADERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "imp",
    "runpy",
    "code",
}
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc", "base"}
MOST_LINES = 450

# What `import rblstore` and the everyday commands must not load: each costs more than the command itself.
SLOW = [
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "tokenizers",
    "numpy",
    "matplotlib",
    "alembic",
    "mako",
    "rich",
    "yaml",
]
SLOW += ["license_expression", "cyclonedx", "spdx_python_model", "in_toto_attestation", "model_signing", "cryptography"]
SLOW += ["sqlalchemy.orm", "huggingface_hub", "pickle5", "pandas", "scipy", "pkg_resources"]


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return BESIDE.get(first, first)


@cache
def tree_of(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text("utf-8"), str(path))
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            child.parent = parent  # type: ignore[attr-defined]
    return tree


def parents(node: ast.AST) -> Iterator[ast.AST]:
    while (node := getattr(node, "parent", None)) is not None:  # type: ignore[assignment]
        yield node


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a name or an attribute, or an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (rest := dotted(node.value)):
        return f"{rest}.{node.attr}"
    return ""


def imports(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Every imported module, ``from a import b`` as ``a.b``, and the statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def runs_on_import(node: ast.AST) -> bool:
    """Whether a statement runs when its module is imported (not in a function, not for type checkers only)."""
    for parent in parents(node):
        if isinstance(parent, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return False
        if isinstance(parent, ast.If) and dotted(parent.test).endswith("TYPE_CHECKING") and node not in parent.orelse:
            return False
    return True


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def constant_tables(tree: ast.Module) -> set[str]:
    """Names of the module's own dictionaries that hold constants only."""
    return {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        if all(isinstance(value, ast.Constant) for value in node.value.values)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def test_every_module_has_its_room() -> None:
    assert len(FILES) > 30
    assert {room_of(path) for path in FILES} <= set(RANK)


@every_file
def test_import_order(path: Path) -> None:
    room = room_of(path)
    for module, statement in imports(tree_of(path)):
        parts = module.split(".")
        if parts[0] != "rblstore":
            continue
        other = BESIDE.get(parts[1], parts[1]) if len(parts) > 1 else "api"
        # `from rblstore import name`: the name of a room, or of the public API.
        other = other if other in RANK else "api"
        assert other == room or RANK[other] < RANK[room], f"line {statement.lineno}: {room} imports {module}"


@every_file
def test_heavy_libraries(path: Path) -> None:
    room = room_of(path)
    for module, statement in imports(tree_of(path)):
        if module.split(".")[0] not in HEAVY:
            continue
        assert room not in HEAVY_NOWHERE, f"line {statement.lineno}: {room} has nothing to do with {module}"
        if room not in HEAVY_ROOMS:
            assert not runs_on_import(statement), f"line {statement.lineno}: {module} is imported outside a function"


@every_file
def test_sql_stays_in_the_catalog(path: Path) -> None:
    for module, statement in imports(tree_of(path)):
        top = module.split(".")[0]
        if top in ("sqlalchemy", "sqlite3", "alembic"):
            assert room_of(path) == "catalog", f"line {statement.lineno}: {module} outside the catalog"
        assert not module.startswith("sqlalchemy.orm"), f"line {statement.lineno}: Core, not the ORM"
        if top == "alembic":
            assert not runs_on_import(statement), f"line {statement.lineno}: alembic is imported outside a function"


@every_file
def test_below_the_command_line_nothing_talks_exits_or_reads_the_environment(path: Path) -> None:
    if room_of(path) == "cli":
        return
    tree = tree_of(path)
    for name, call in calls(tree):
        assert name not in ("print", "input", "exit", "quit", "sys.exit", "os._exit", "os.abort"), (
            f"line {call.lineno}: {name}"
        )
        assert name.split(".")[-1] not in ("getenv", "expanduser"), f"line {call.lineno}: {name}"
        assert name not in ("Path.home", "pathlib.Path.home", "os.putenv"), f"line {call.lineno}: {name}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)):
            name = dotted(node)
            assert name not in (
                "os.environ",
                "os.environb",
                "environ",
                "sys.stdout",
                "sys.stderr",
                "sys.stdin",
                "sys.argv",
            ), f"line {node.lineno}: {name}"
            assert name != "SystemExit", f"line {node.lineno}: {name}"
    for module, statement in imports(tree):
        assert module not in ("os.environ", "os.getenv", "sys.exit", "sys.argv"), f"line {statement.lineno}: {module}"
        assert module.split(".")[0] not in ("click", "rich"), (
            f"line {statement.lineno}: {module} belongs to the command line"
        )


@every_file
def test_data_is_never_code(path: Path) -> None:
    tree = tree_of(path)
    for module, statement in imports(tree):
        assert module.split(".")[0] not in CODE_LOADERS, f"line {statement.lineno}: {module}"
    for name, call in calls(tree):
        assert name not in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"), (
            f"line {call.lineno}: {name}"
        )
        assert name not in ("torch.load", "numpy.load", "np.load", "yaml.load"), f"line {call.lineno}: {name}"
        assert name not in ("os.system", "os.popen"), f"line {call.lineno}: {name}"
        if name.split(".")[-1] == "import_module" and room_of(path) != "cli":
            named = call.args[0]
            fixed = isinstance(named, ast.Subscript) and dotted(named.value) in constant_tables(tree)
            assert fixed or isinstance(named, ast.Constant), f"line {call.lineno}: imports what a value names"
        for keyword in call.keywords:
            if keyword.arg == "trust_remote_code":
                assert isinstance(keyword.value, ast.Constant), f"line {call.lineno}"
                assert keyword.value.value is False, f"line {call.lineno}: remote code"
            if keyword.arg == "shell":
                assert isinstance(keyword.value, ast.Constant), f"line {call.lineno}"
                assert keyword.value.value is False, f"line {call.lineno}: a shell"
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code":
                    assert isinstance(value, ast.Constant), f"line {node.lineno}"
                    assert value.value is False, f"line {node.lineno}: remote code"


@every_file
def test_exceptions_are_specific(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            caught = {dotted(kind) for kind in kinds}
            assert "Exception" not in caught, f"line {node.lineno}: except Exception"
            if "BaseException" in caught:
                # Cleaning up on the way out is fine, staying is not.
                last = node.body[-1]
                assert isinstance(last, ast.Raise), f"line {node.lineno}: except BaseException does not re-raise"
                assert last.exc is None, f"line {node.lineno}: except BaseException raises something else"
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] == "suppress":
            suppressed = {dotted(argument) for argument in node.args}
            assert not suppressed & {"Exception", "BaseException"}, f"line {node.lineno}: suppresses everything"


@every_file
def test_files_are_named_and_short(path: Path) -> None:
    assert path.stem not in VAGUE
    assert not {part for part in path.relative_to(PACKAGE).parts[:-1] if part in VAGUE}
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MOST_LINES, f"{lines} lines: find a name for its second half"


@every_file
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), "no docstring"


def loaded_by(code: str, folder: Path) -> set[str]:
    """The modules of SLOW that some code loads in a fresh interpreter, beyond what the interpreter loads anyway."""
    found = f"(name for name in {SLOW!r} if name in sys.modules and name not in before)"
    report = f"import sys; before = set(sys.modules)\n{code}\nprint('loaded:', *{found})"
    ran = subprocess.run(
        [sys.executable, "-c", report],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "loaded:" in ran.stdout, ran.stderr
    return set(ran.stdout.split("loaded:")[1].split())


def test_the_probe_sees_what_is_loaded(tmp_path: Path) -> None:
    assert loaded_by("import yaml", tmp_path) == {"yaml"}


@pytest.mark.parametrize("module", ["rblstore", "rblstore.cli.main", "rblstore.api", "rblstore.repository"])
def test_importing_loads_nothing_slow(module: str, tmp_path: Path) -> None:
    assert loaded_by(f"import {module}", tmp_path) == set()


@pytest.mark.parametrize("command", ["log", "status", "branch", "op log"])
def test_everyday_commands_load_nothing_slow(command: str, tmp_path: Path) -> None:
    run = "from rblstore.cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    loaded_by(f"sys.argv = ['rbl', 'init']\n{run}", tmp_path)
    assert (tmp_path / ".rbl").is_dir()
    assert loaded_by(f"sys.argv = ['rbl', *{command.split()!r}]\n{run}", tmp_path) == set()
