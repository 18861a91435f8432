"""Imports go one way, those for types and those inside functions included."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "spectramind_fused"
# Each room may import from those behind it.
ROOMS = {
    "multi_tensor": set(),
    "kernels": {"multi_tensor"},
    "stepping": {"kernels", "multi_tensor"},
    "optim": {"stepping", "kernels", "multi_tensor"},
    "config": {"optim"},
    "bench": {"optim"},
    "training": {"config", "optim"},
    "cli": {"training", "config", "bench", "optim", "stepping", "kernels"},
}
# Those that the package itself exports count as where they come from.
EXPORTED = {"build_optimizer": "config", "build_scheduler": "config"}


def is_module(name):
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def room_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "spectramind_fused" and len(parts) > 1 else None


def imported(path):
    """The modules that a file imports anywhere, and the names it takes from the package itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                if is_module(f"{node.module}.{alias.name}"):
                    yield f"{node.module}.{alias.name}"
                elif node.module == "spectramind_fused":
                    yield f"spectramind_fused.{EXPORTED.get(alias.name, 'optim')}"
                else:
                    yield node.module


def arrows(path):
    """The rooms that a file imports from, its own aside."""
    own = path.relative_to(PACKAGE).parts[0]
    return {room for name in imported(path) if (room := room_of(name)) not in (None, own)}


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_runs_back(room):
    for path in sorted((PACKAGE / room).rglob("*.py")):
        assert arrows(path) - {"version", "configs", "files"} <= ROOMS[room], path


def test_modules_of_a_room_import_each_other_in_no_circle():
    """Not even for types: who names a class must be able to import it."""
    inside = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        inside[name.removesuffix(".__init__")] = set(imported(path))
    known = {name: {i for i in found if i in inside} for name, found in inside.items()}
    while known:
        free = {name for name, found in known.items() if not found & known.keys()}
        assert free, f"a circle among {sorted(known)}"
        known = {name: found for name, found in known.items() if name not in free}


def test_every_room_is_known():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(ROOMS)


def test_an_arrow_that_runs_back_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "kernels").mkdir()
    path = tmp_path / "kernels" / "a.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import spectramind_fused.optim\n"
        "def f():\n    from spectramind_fused.config.check import Section\n"
    )
    assert arrows(path) == {"optim", "config"}
