"""The structure: rooms, the direction of imports, and paths that the documents name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top: a room imports from rooms after it, never from one before.
ROOMS = (
    "commands",
    "analysis",
    "interfaces",
    "equilibrium",
    "runs",
    "training",
    "warpdrive",
    "economy",
    "config",
    "errors",
)
SOURCES = sorted((ROOT / "rbc_warp").rglob("*.py"))


def room_of(path: Path) -> str:
    """The room that a file of the package stands in; the package itself and its launchers are above all rooms."""
    return path.relative_to(ROOT / "rbc_warp").parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that a file takes from the package, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rbc_warp"):
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.startswith("rbc_warp")]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_take_no_private_name(path: Path) -> None:
    if room_of(path) not in ROOMS:
        assert path.name in ("__init__.py", "__main__.py")
        return
    level = ROOMS.index(room_of(path))
    for module, name in imports(path):
        assert module != "rbc_warp", f"{path}: import from the room, not from the public face"
        room = module.split(".")[1]
        assert ROOMS.index(room) >= level, f"{path}: {module}.{name} is an arrow upwards"
        if room != room_of(path):
            assert not name.startswith("_"), f"{path}: {module}.{name} is another room's private name"


def test_no_files_import_each_other_in_a_circle() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    names |= {name.removesuffix(".__init__"): path for name, path in names.items()}
    arrows = {
        path: {names.get(f"{module}.{name}", names.get(module)) for module, name in imports(path)} - {None, path}
        for path in SOURCES
    }
    while free := [path for path, to in arrows.items() if not to & arrows.keys()]:
        for path in free:
            del arrows[path]
    assert not arrows, f"a circle among {sorted(str(path.relative_to(ROOT)) for path in arrows)}"


def test_every_room_says_what_it_is() -> None:
    folders = [room for room in ROOMS if room != "errors"]
    for room in folders:
        assert ast.get_docstring(ast.parse((ROOT / "rbc_warp" / room / "__init__.py").read_text())), room
    assert sorted(
        path.name for path in (ROOT / "rbc_warp").iterdir() if path.is_dir() and path.name != "__pycache__"
    ) == sorted([*folders, "cuda"])


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_paths_in_the_documents_exist(path: Path) -> None:
    """Files that a document names in code or links to; those of a run, and what a reader makes, are not ours."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`((?:rbc_warp|configs|tests|docs|examples)/[\w./*-]+)`", text))
    named |= {target for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)}
    missing = [name for name in named if not (ROOT / name).exists() and not (path.parent / name).exists()]
    assert [name for name in missing if not list(ROOT.glob(name))] == []
