"""The house rules that a machine can hold: import order, refused constructs, no shadowing."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.source_tree import PACKAGES, Tree

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})
LOADERS = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("os", "system")}


@cache
def tree_of(packages: tuple[str, ...]) -> Tree:
    return Tree.read(ROOT, packages)


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names.add(str(node.module))
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_package_imports_only_those_before_it(path: Path) -> None:
    allowed = PACKAGES[: PACKAGES.index(path.relative_to(ROOT).parts[0]) + 1]
    packages = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    refused = packages & {*PACKAGES, "tests"} - {*allowed}
    assert not refused, f"{path.name} imports {sorted(refused)}"


def test_no_module_imports_itself_through_others() -> None:
    assert tree_of(PACKAGES).cycles() == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_unpickled_and_no_shell_runs(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not imported(tree) & {"pickle", "dill", "shelve", "marshal", "joblib", "cloudpickle"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {k.arg: k.value for k in node.keywords}
            for name in ("shell", "allow_pickle"):
                value = keywords.get(name)
                assert not (isinstance(value, ast.Constant) and value.value), f"line {node.lineno}"
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                assert (node.func.value.id, node.func.attr) not in LOADERS, f"line {node.lineno}"
            if isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, f"line {node.lineno}"


def test_no_module_shadows_the_standard_library() -> None:
    assert not {path.stem for path in FILES} - {"__init__"} & sys.stdlib_module_names


def test_packing_imports_no_torch() -> None:
    for path in (ROOT / "shards").rglob("*.py"):
        heavy = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
        assert not heavy & {"torch", "torchvision", "kornia"}, path.name


@pytest.mark.parametrize("path", FOLDERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_docstring_of_a_package_lists_its_modules_and_no_others(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse((path / "__init__.py").read_text())) or ""
    _, _, listing = docstring.partition("\n\n")
    listed = [name for line in listing.splitlines() for name in names_at_the_start(line)]
    children = {
        child.stem for child in path.iterdir() if child.suffix == ".py" or is_package(child)
    }
    assert {*listed} - {"__main__"} == children - {"__init__", "__main__"}


def names_at_the_start(line: str) -> list[str]:
    """The modules that a line of a listing describes: `name  what it is` or `one, two  both`."""
    names, gap, _ = line.strip().partition("  ")
    return [name.rstrip("/") for name in names.split(", ")] if gap else []


def is_package(folder: Path) -> bool:
    return (folder / "__init__.py").is_file()


def test_the_formatter_breaks_every_line() -> None:
    trees = [tree_of(PACKAGES), tree_of(("tests",))]
    modules = [module for tree in trees for module in tree.modules.values()]
    assert [m.name for m in modules if m.comments("fmt: *(skip|off)")] == []


def test_no_test_module_imports_another() -> None:
    tests = tree_of(("tests",))
    for name, targets in tests.import_graph.items():
        others = [t for t in targets if t.split(".")[-1].startswith("test_")]
        assert not others, f"{name} imports {others}"
