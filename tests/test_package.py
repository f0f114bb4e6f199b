"""The package's layout holds together: what is imported, what is listed, what ships."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = (
    "cache",
    "commands",
    "compute",
    "demo",
    "display",
    "errors",
    "pipeline",
    "plugins",
    "report",
    "stats",
    "train",
)


def test_importing_phistill_loads_none_of_its_rooms_and_no_library_of_weight() -> None:
    code = "import phistill, sys; print(phistill.__version__, *sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert printed[0].count(".") == 2
    assert not {"numpy", "torch", "zarr", "timm", "pyarrow"} & set(printed)
    assert not [name for name in printed if name.startswith("phistill.")]


def test_every_name_at_the_top_is_there_and_typed_by_the_stub() -> None:
    import phistill

    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    (names,) = [node.value for node in stub.body if isinstance(node, ast.Assign)]
    exported = ast.literal_eval(names)
    assert {"open", "extract", "fit_stats", "train", "evaluate"} <= set(exported)
    for name in exported:
        assert callable(getattr(phistill, name)) or getattr(phistill, name).__doc__


def test_train_is_a_function_and_a_room_whichever_is_asked_for_first() -> None:
    for first in ("phistill.train", "phistill.train.config", "phistill"):
        code = (
            f"import {first}, phistill; room = phistill.train; assert callable(room); "
            "from phistill.train import TrainConfig; import phistill.train; "
            "assert phistill.train is room and room.TrainConfig is TrainConfig"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


def test_only_three_python_files_lie_at_the_root() -> None:
    found = {path.name for path in ROOT.glob("*.py")}
    assert found == {"__init__.py", "__main__.py", "cli.py"}


def test_every_package_folder_is_listed_for_the_wheel() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {
        "phistill." + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert listed == {"phistill", *folders}


@pytest.mark.skipif(not (ROOT / ".typing").exists(), reason="a source archive holds no links")
def test_type_checkers_find_every_room_through_a_link() -> None:
    links = ROOT / ".typing" / "phistill"
    assert {path.name for path in links.iterdir()} == {
        *ROOMS, "__init__.py", "__init__.pyi", "__main__.py", "cli.py", "py.typed"
    }  # fmt: skip
    assert all(path.is_symlink() and path.exists() for path in links.iterdir())


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    names = {path.stem for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert not names & sys.stdlib_module_names
    assert not names & {"utils", "common", "helpers", "misc"}


def test_nothing_can_run_code_from_a_file() -> None:
    """G20: no pickle, eval or shell, and no torch.load without weights_only=True."""
    bad = []
    for room in (*ROOMS, "cli.py"):
        for path in [ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if _uses_pickle(node):
                    bad.append((path.name, node.lineno))
                if isinstance(node, ast.Call) and _dangerous(node):
                    bad.append((path.name, node.lineno))
    assert bad == []


def _uses_pickle(node: ast.AST) -> TypeGuard[ast.ImportFrom | ast.Attribute]:
    """Anything of pickle but its error, which torch's weights-only reader raises."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "pickle"
    return (
        isinstance(node, ast.Attribute)
        and ast.unparse(node.value) == "pickle"
        and node.attr != "UnpicklingError"
    )


def _dangerous(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name in ("eval", "exec", "pickle.load", "pickle.loads", "os.system"):
        return True
    if name == "torch.load":
        return keywords.get("weights_only") != "True"
    return keywords.get("shell") == "True"


@pytest.mark.parametrize("module", ["phistill.cli", "phistill.train", "phistill.stats"])
def test_cheap_imports_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'timm'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
