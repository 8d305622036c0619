"""The import ladder: modules import from lower rooms only, no ring anywhere, and no module of ours is imported late but in cli/."""

import ast
import functools
from pathlib import Path

import pytest

import graft

ROOT = Path(graft.__file__).parent
LADDER = [
    {"errors", "files", "deferred", "theme"},
    {"site", "kernels", "data", "config"},
    {"forms"},
    {"method", "pack"},
    {"methods", "adapter"},
    {"formats"},
    {"model"},
    {"train", "evaluate", "verify", "plan", "serve", "doctor", "demo"},
    {"compare", "export"},
    {"jobs", "deliver", "chat", "checkup"},
    {"cli", "__init__"},
]
RANK = {room: rank for rank, rooms in enumerate(LADDER) for room in rooms}
MODULES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
FOREIGN = {"accelerate": {"train", "compare"}, "triton": {"kernels"}, "bitsandbytes": {"kernels"}, "typer": {"cli"}}
FOREIGN |= {name: {"serve"} for name in ("fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client")}
"""Libraries that only these rooms may name (compare reads accelerate's version, as text)."""


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def own(node: ast.AST) -> list[str]:
    """The modules of ours that an import statement needs."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        parts = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [part if part in MODULES or f"{part}.__init__" in MODULES else node.module for part in parts]
    return [name for name in names if name == "graft" or name.startswith("graft.")]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def is_optional(node: ast.AST) -> bool:
    """Whether a block at the top of a module is there for what is not installed everywhere."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TRITON"


def top_level(tree: ast.Module) -> list[str]:
    body = [inner for node in tree.body for inner in (node.body if is_optional(node) else [node])]
    return [name for node in body if not is_type_checking(node) for name in own(node)]


@functools.cache
def imports() -> dict[str, list[str]]:
    return {name.removesuffix(".__init__"): top_level(ast.parse(path.read_text())) for name, path in MODULES.items()}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    name = module.removesuffix(".__init__")
    for needed in imports()[name]:
        assert room(needed) == room(name) or RANK[room(needed)] < RANK[room(name)], f"{name} imports {needed}, which is not below it"


def test_there_is_no_ring():
    graph = imports()
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done or name not in graph:
            return
        path.append(name)
        for needed in graph[name]:
            if needed != name:
                visit(needed)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room(name) not in ("cli", "__init__")))
def test_nothing_of_ours_is_imported_late(module):
    tree = ast.parse(MODULES[module].read_text())
    late = [name for node in ast.walk(tree) for name in own(node)]
    typed = [name for node in tree.body if is_type_checking(node) for inner in ast.walk(node) for name in own(inner)]
    assert sorted(late) == sorted(top_level(tree) + typed)


@pytest.mark.parametrize("library", FOREIGN)
def test_a_library_stays_in_its_room(library):
    users = {room(name) for name, path in MODULES.items() for node in ast.walk(ast.parse(path.read_text())) if library in named(node)}
    assert users <= FOREIGN[library]


def named(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) and node.module else []


def test_no_pickle_is_read_or_written():
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not {"pickle", "shelve", "marshal", "dill"} & set(named(node)), path
            assert not (isinstance(node, ast.Attribute) and node.attr in ("load", "save") and getattr(node.value, "id", "") == "torch"), (
                path
            )


LONGEST = {"cli": 300, "tiles.py": 120}
"""Rooms and files where a function may have more than 40 lines: a command is its options, and a kernel cannot be cut in two."""


def test_files_and_functions_stay_small():
    for name, path in MODULES.items():
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        longest = LONGEST.get(room(name), LONGEST.get(path.name, 40))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                assert size <= longest, f"{path.name}: {node.name} has {size} lines"
