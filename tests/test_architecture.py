"""The house stays in order: how many modules a folder has, how long they are, that imports run one
way. By hand it prints the figures of this checkout, or of others beside one another:

    python tests/test_architecture.py [CHECKOUT ...]

A module is counted with every import it makes, those inside functions too, and those that a lazy
``__init__`` makes in its name; imports for type checkers alone (TYPE_CHECKING) do not count.
"""

from __future__ import annotations

import ast
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
MAX_MODULES = 12
MAX_LINES = 400
MAX_SOURCE_LINES = 46_400


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """One folder of the package, its sub-folders not counted."""

    name: str
    num_modules: int
    """Without ``__init__``."""
    longest: int
    """Lines of the longest module."""
    num_floors: int | None
    """Modules of the longest chain of imports inside the folder, a sub-folder counting as one; None
    where the imports run in a circle."""
    num_arrows: int
    """Imports between its modules and sub-folders."""


@dataclass(frozen=True, kw_only=True, slots=True)
class House:
    """The figures of a checkout."""

    folders: tuple[Folder, ...]
    lines: dict[str, int]
    """By module; blank lines and comments count."""
    cycles: tuple[tuple[str, ...], ...]
    """Modules that import one another, directly or through others."""

    typed_cycles: tuple[tuple[str, ...], ...]
    """The same with the imports that only a type checker makes."""

    @property
    def num_lines(self) -> int:
        return sum(self.lines.values())

    @property
    def longest(self) -> str:
        return max(self.lines, key=lambda module: self.lines[module])


def measure(root: Path) -> House:
    """The figures of the checkout at ``root``, whose pyproject.toml lists the folders."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    packages: list[str] = project["tool"]["setuptools"]["packages"]
    lines = {
        _module(package, path): len(path.read_text("utf-8").splitlines())
        for package in packages
        for path in _folder(root, package).glob("*.py")
    }
    graph = _graph(root, packages, typed=False)
    return House(
        folders=tuple(_measure_folder(package, packages, lines, graph) for package in packages),
        lines=lines,
        cycles=tuple(_cycles(graph)),
        typed_cycles=tuple(_cycles(_graph(root, packages, typed=True))),
    )


def _folder(root: Path, package: str) -> Path:
    return root.joinpath(*package.split(".")[1:])


def _module(package: str, path: Path) -> str:
    return package if path.stem == "__init__" else f"{package}.{path.stem}"


def _graph(root: Path, packages: Sequence[str], *, typed: bool) -> grimp.ImportGraph:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "phistill").symlink_to(root.absolute(), target_is_directory=True)
        sys.path.insert(0, folder)
        loaded = sys.modules.pop("phistill", None)
        try:
            graph = grimp.build_graph(
                "phistill", exclude_type_checking_imports=not typed, cache_dir=None
            )
        finally:
            sys.path.remove(folder)
            if loaded is not None:
                sys.modules["phistill"] = loaded
    for package in packages[1:]:  # the root's is the front door: for guests (see the test below)
        stub = _folder(root, package) / "__init__.pyi"
        for node in ast.parse(stub.read_text("utf-8")).body if stub.exists() else ():
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                graph.add_import(importer=package, imported=f"{package}.{node.module}")
    return graph


def _cycles(graph: grimp.ImportGraph) -> Iterator[tuple[str, ...]]:
    """Groups of modules each of which reaches all others of its group."""
    seen: set[str] = set()
    for module in sorted(graph.modules):
        if module in seen:
            continue
        upstream = graph.find_upstream_modules(module)
        group = {module} | (upstream & graph.find_downstream_modules(module))
        seen |= group
        if len(group) > 1:
            yield tuple(sorted(group))


def _measure_folder(
    package: str, packages: Sequence[str], lines: dict[str, int], graph: grimp.ImportGraph
) -> Folder:
    inside = [module for module in lines if module.rpartition(".")[0] == package]
    modules = [module for module in inside if module not in packages]
    arrows = {
        (importer, imported)
        for importer in inside
        for imported in inside
        if importer != imported and _imports(graph, importer, imported, packages)
    }
    return Folder(
        name=package,
        num_modules=len(modules),
        longest=max((lines[module] for module in modules), default=0),
        num_floors=_num_floors(inside, arrows),
        num_arrows=len(arrows),
    )


def _imports(
    graph: grimp.ImportGraph, importer: str, imported: str, packages: Sequence[str]
) -> bool:
    if importer not in packages and imported not in packages:
        return graph.direct_import_exists(importer=importer, imported=imported)
    return graph.direct_import_exists(importer=importer, imported=imported, as_packages=True)


def _num_floors(modules: Sequence[str], arrows: set[tuple[str, str]]) -> int | None:
    """The longest chain of imports."""
    below = {module: {b for a, b in arrows if a == module} for module in modules}
    floors: dict[str, int] = {}
    sorter = TopologicalSorter(below)
    try:
        for module in sorter.static_order():
            floors[module] = 1 + max((floors[b] for b in below[module]), default=0)
    except CycleError:
        return None
    return max(floors.values(), default=0)


@pytest.fixture(scope="module")
def house() -> House:
    return measure(ROOT)


def test_no_room_walks_through_the_front_door(house: House) -> None:
    """From ``phistill`` itself modules take rooms and the version, not what others made public."""
    allowed = {module.split(".")[1] for module in house.lines if "." in module} | {"__version__"}
    taken = {
        (path.relative_to(ROOT).as_posix(), alias.name)
        for folder in house.folders
        for path in _folder(ROOT, folder.name).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "phistill"
        for alias in node.names
    }
    assert taken
    assert not {(path, name) for path, name in taken if name not in allowed}


def test_no_module_imports_another_that_imports_it(house: House) -> None:
    assert house.cycles == house.typed_cycles == ()
    assert [folder.name for folder in house.folders if folder.num_floors is None] == []


def test_a_folder_has_a_dozen_modules_at_most(house: House) -> None:
    assert {f.name: f.num_modules for f in house.folders if f.num_modules > MAX_MODULES} == {}


def test_no_module_has_to_be_scrolled_for_long(house: House) -> None:
    assert {m: n for m, n in house.lines.items() if n > MAX_LINES} == {}


def test_the_source_does_not_grow_unnoticed(house: House) -> None:
    assert house.num_lines <= MAX_SOURCE_LINES


def test_every_file_that_the_page_names_is_there() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", page))
    assert len(named) > 40
    known = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.py")}
    # "`decode/pool.py`" in a line of its room stands for the file's whole path.
    assert [
        name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in known)
    ] == []


def test_circles_longest_modules_and_floors_are_seen(tmp_path: Path) -> None:
    """The measures themselves, on a small package: ``a`` and ``b`` import one another, ``b`` in a
    function; ``c`` imports ``b`` for the type checker only."""
    (tmp_path / "pyproject.toml").write_text("[tool.setuptools]\npackages = ['phistill']\n")
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "a.py").write_text("from . import b\n")
    (tmp_path / "b.py").write_text("def f():\n    from . import a\n    return a\n")
    (tmp_path / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import b\n"
    )
    house = measure(tmp_path)
    assert house.cycles == (("phistill.a", "phistill.b"),)
    assert house.typed_cycles == house.cycles
    assert (house.folders[0].num_modules, house.folders[0].num_floors) == (3, None)
    (tmp_path / "b.py").write_text("")
    assert measure(tmp_path).cycles == ()
    assert measure(tmp_path).folders[0].num_floors == 2


def table(houses: dict[str, House]) -> str:
    """Markdown: the figures of the whole, then those of each folder."""
    names = sorted({folder.name for house in houses.values() for folder in house.folders})
    rows = [
        ["source lines", *(f"{house.num_lines:,}" for house in houses.values())],
        ["modules", *(str(len(house.lines)) for house in houses.values())],
        [
            "longest module",
            *(f"`{h.longest.partition('.')[2]}` {h.lines[h.longest]}" for h in houses.values()),
        ],
        ["modules in import cycles", *(str(sum(map(len, h.cycles))) for h in houses.values())],
        [
            "the same, imports for type checkers too",
            *(str(sum(map(len, h.typed_cycles))) for h in houses.values()),
        ],
        ["modules, longest, floors, arrows of"] + [""] * len(houses),
    ]
    for name in names:
        row = [f"`{name.partition('.')[2].replace('.', '/') or '.'}`"]
        for house in houses.values():
            row += [_figures(folder) for folder in house.folders if folder.name == name] or [""]
        rows.append(row)
    lines = [["", *houses], ["---"] * (1 + len(houses)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures(folder: Folder) -> str:
    floors = "circle" if folder.num_floors is None else folder.num_floors
    return f"{folder.num_modules}, {folder.longest}, {floors}, {folder.num_arrows}"


if __name__ == "__main__":
    checkouts = [Path(argument) for argument in sys.argv[1:]] or [ROOT]
    measured = {checkout.name or "here": measure(checkout) for checkout in checkouts}
    print(table(measured))
    for title, found in measured.items():
        for cycle in found.typed_cycles:
            print(f"\n{title}, a circle: {', '.join(cycle)}")
