"""Print what the structure of a tree measures: `python -m tests.structure_figures`.

Everything is counted from the source by `ast` and `tokenize`; nothing is imported or run.

A walk is what a reader opens to follow one thing through the product. From its entry functions
every name outside of an annotation is followed to the function, class or constant of the product
that it names. Of a class that is reached, the special methods, `forward`, and the methods whose
name occurs as an attribute in what is reached are followed too. "Opened" counts the modules that
define a reached function or class; exceptions, and modules of other cases (a manifest, tiles,
slides, random colours, a remote data set: `OTHER_CASES`, by a part of their name), are left out.
"Closure" counts those and all that they import, directly or not. Both are upper bounds of what one
really runs.
"""

import argparse
import ast
import json
import re
from collections import Counter
from pathlib import Path

from tests.helpers.source_tree import PACKAGES, Definition, Function, Module, Tree

LONG_MODULE, LONG_FUNCTION = 400, 60

# entry functions, `module:name`; of alternatives split by `|` the first that exists
WALKS = {
    "patch, PNG to tar": ["shards.pack.__main__:main|shards.pack:main"],
    "batch, disk to loss": [
        "pipeline.index:open_dataset",
        "pipeline.loader:Loader.batches",
        "train.loop:Trainer.update",
        "models.objective:Objective",
    ],
    "run, checkpoint to report": [
        "train.loop:Trainer._checkpoint|train.loop:Trainer.save_checkpoint",
        "models.snapshot:save",
        "eval.main:evaluate|eval.evaluate:evaluate|eval.evaluation:evaluate",
        "eval.report.__main__:main|eval.report:main",
    ],
}
OTHER_CASES = {
    "patch, PNG to tar": (
        "manifest listed cells columns convert tiles images slices tasks recorded slides staged"
    ),
    "batch, disk to loss": "tied classification images task tracker colour stain jitter",
    "run, checkpoint to report": (
        "tied classification colour stain latex remote download store images task step schedule"
        " tracker launch transfer transfer_report transfer_contrasts"
    ),
}

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Walk:
    """What is reached from entry functions by name: definitions, methods and their modules."""

    def __init__(self, tree: Tree, name: str) -> None:
        self.tree, self._other_cases = tree, {*OTHER_CASES[name].split()}
        self.opened: set[str] = set()
        self._seen: set[int] = set()  # id() of syntax nodes
        self._attributes: set[str] = set()
        self._idle: list[tuple[Module, Function]] = []  # methods that nothing has named yet
        self.missing = [entry for entry in WALKS[name] if not self._enter(entry)]
        while called := [m for m in self._idle if m[1].name in self._attributes]:
            self._idle = [m for m in self._idle if m[1].name not in self._attributes]
            for module, method in called:
                self._follow(module, method)

    def _enter(self, entry: str) -> bool:
        for alternative in entry.split("|"):
            name, _, path = alternative.partition(":")
            if resolved := self.tree.resolve(f"{name}.{path}"):
                self._reach(*resolved)
                self._attributes.update(path.split(".")[1:])
                return True
        return False

    def _reach(self, module: Module, name: str) -> None:
        node = module.definitions[name]
        if id(node) in self._seen or self._other_cases & {*module.name.split(".")}:
            return
        self._seen.add(id(node))
        if isinstance(node, Definition) and not name.endswith(("Error", "Warning")):
            self.opened.add(module.name)
        if not isinstance(node, ast.ClassDef):
            self._follow(module, node)
            return
        for member in [*node.bases, *node.decorator_list, *node.body]:
            if isinstance(member, Function) and not re.match("__|forward$", member.name):
                self._idle.append((module, member))
            else:
                self._follow(module, member)

    def _follow(self, module: Module, node: ast.AST) -> None:
        """Reach all that `node` names outside of annotations."""
        if isinstance(node, ast.Name):
            self._name(module, node.id)
        elif isinstance(node, ast.Attribute):
            self._attributes.add(node.attr)
            dotted = ast.unparse(node)
            first = dotted.split(".")[0]
            self._name(module, dotted if first in module.imports else first)
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        self._follow(module, child)

    def _name(self, module: Module, name: str) -> None:
        first, _, others = name.partition(".")
        if first in module.definitions:
            self._reach(module, first)
        elif first in module.imports:
            dotted = ".".join(filter(None, [module.imports[first], others]))
            if resolved := self.tree.resolve(dotted):
                self._reach(*resolved)


def folders(tree: Tree, root: Path) -> dict[str, int]:
    """Modules per folder, `__init__` left out."""
    paths = [root / name.replace(".", "/") for name in tree.modules]
    return Counter(str(p.parent.relative_to(root)) for p in paths if not p.is_dir())


def used_once(module: Module) -> tuple[int, int]:
    """Private functions of a module, and those of them that are named at exactly one place."""
    names = Counter(node.id for node in module.nodes if isinstance(node, ast.Name))
    names += Counter(node.attr for node in module.nodes if isinstance(node, ast.Attribute))
    private = [f.name for f in module.functions if re.match(r"_(?!_)", f.name)]
    return len(private), sum(names[name] == 1 for name in private)


def binds(function: Function, name: str) -> bool:
    names = (node for node in ast.walk(function) if isinstance(node, ast.Name))
    return any(node.id == name and isinstance(node.ctx, ast.Store) for node in names)


def nested_comprehensions(module: Module) -> int:
    outer = [node for node in module.nodes if isinstance(node, COMPREHENSIONS)]
    return sum(sum(isinstance(n, COMPREHENSIONS) for n in ast.walk(o)) > 1 for o in outer)


def length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def figures(root: Path) -> dict[str, int | float | str | list[str]]:
    tree, tests = Tree.read(root, PACKAGES), Tree.read(root, ("tests",))
    product = list(tree.modules.values())
    everything = [*product, *tests.modules.values()]
    functions = [function for module in product for function in module.functions]
    private, once = map(sum, zip(*map(used_once, product), strict=True))
    largest, count = Counter(folders(tree, root)).most_common(1)[0]
    table: dict[str, int | float | str | list[str]] = {
        "modules, without __init__": sum(folders(tree, root).values()),
        "most modules in one folder": f"{count} ({largest})",
    }
    for walk_name in WALKS:
        walk = Walk(tree, walk_name)
        table[f"modules opened: {walk_name}"] = len(walk.opened)
        table[f"modules in the closure: {walk_name}"] = len(tree.closure(walk.opened))
        if walk.missing:
            table[f"entries that do not exist: {walk_name}"] = walk.missing
    table |= {
        "functions": len(functions),
        "functions that bind `found`": sum(binds(function, "found") for function in functions),
        f"functions over {LONG_FUNCTION} lines": sum(length(f) > LONG_FUNCTION for f in functions),
        "private functions": private,
        "private functions used once": once,
        "private functions used once, % of all functions": round(100 * once / len(functions), 1),
        "dict[str, Any]": sum(m.text.count("dict[str, Any]") for m in product),
        "# fmt: skip, code and tests": sum(m.comments("fmt: *skip") for m in everything),
        "# noqa": sum(m.comments("noqa") for m in product),
        "# type: ignore": sum(m.comments("type: *ignore") for m in product),
        "nested comprehensions": sum(map(nested_comprehensions, product)),
        "import cycles": [" <-> ".join(cycle) for cycle in tree.cycles()],
        f"modules over {LONG_MODULE} lines": [
            m.name for m in product if m.text.count("\n") > LONG_MODULE
        ],
    }
    for package in PACKAGES:
        table[f"lines of code: {package}"] = sum(
            m.code_lines() for m in product if m.package == package
        )
    table["lines of code: product"] = sum(m.code_lines() for m in product)
    table["lines of code: tests"] = sum(m.code_lines() for m in tests.modules.values())
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures of the structure of a source tree.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    measured = figures(arguments.root)
    if arguments.json:
        print(json.dumps(measured, indent=1))
        return
    for name, value in measured.items():
        shown = f"{len(value)} {'; '.join(value)}" if isinstance(value, list) else f"{value}"
        print(f"{name:<55} {shown}")


if __name__ == "__main__":
    main()
