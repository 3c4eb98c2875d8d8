"""The source files of a tree, parsed: what they define, import and count."""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PACKAGES = ("common", "shards", "pipeline", "models", "eval", "train", "bench")
NOT_CODE = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass(frozen=True, eq=False)
class Module:
    """One source file: its name as imported, its text and its syntax tree."""

    name: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in self.nodes if isinstance(node, Function)]

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    @cached_property
    def definitions(self) -> dict[str, ast.AST]:
        """Functions, classes and assigned values of the top level, by name."""
        named: dict[str, ast.AST] = {}
        for node in self.tree.body:
            if isinstance(node, Definition):
                named[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                named |= {t.id: node.value for t in targets if isinstance(t, ast.Name)}
        return named

    @cached_property
    def imports(self) -> dict[str, str]:
        """Dotted name of what each imported name stands for; imports inside functions too."""
        names: dict[str, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    names[alias.asname or alias.name] = alias.name
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        return names

    def comments(self, pattern: str) -> int:
        if not re.search(pattern, self.text):
            return 0
        tokens = (t.string for t in self.tokens if t.type == tokenize.COMMENT)
        return sum(re.search(pattern, comment) is not None for comment in tokens)

    def code_lines(self) -> int:
        """Lines with code: no blank lines, comments or docstrings."""
        lines: set[int] = set()
        for token in self.tokens:
            if tokenize.tok_name[token.type] not in NOT_CODE:
                lines.update(range(token.start[0], token.end[0] + 1))
        for node in self.nodes:
            if isinstance(node, ast.Module | Definition) and ast.get_docstring(node) is not None:
                docstring = node.body[0]
                lines -= {*range(docstring.lineno, (docstring.end_lineno or 0) + 1)}
        return len(lines)


@dataclass
class Tree:
    """The modules of a product or of its tests, by name."""

    modules: dict[str, Module] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path, packages: tuple[str, ...]) -> "Tree":
        modules = {}
        for package in packages:
            for path in sorted((root / package).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                text = path.read_text(encoding="utf-8")
                modules[name] = Module(name, text, ast.parse(text))
        return cls(modules)

    def module_of(self, dotted: str) -> str | None:
        """The module that `dotted` is, or is defined in."""
        while dotted and dotted not in self.modules:
            dotted = dotted.rpartition(".")[0]
        return dotted or None

    @cached_property
    def import_graph(self) -> dict[str, set[str]]:
        graph = {}
        for name, module in self.modules.items():
            targets = map(self.module_of, module.imports.values())
            graph[name] = {target for target in targets if target is not None and target != name}
        return graph

    def closure(self, names: set[str]) -> set[str]:
        reached, waiting = set(names), list(names)
        while waiting:
            new = self.import_graph[waiting.pop()] - reached
            reached |= new
            waiting += new
        return reached

    def cycles(self) -> list[list[str]]:
        """Groups of modules that import one another, directly or not."""
        onward = {name: self.closure(set(targets)) for name, targets in self.import_graph.items()}
        groups = {
            tuple(sorted({name} | {n for n in onward[name] if name in onward[n]}))
            for name in onward
            if name in onward[name]
        }
        return [list(group) for group in sorted(groups)]

    def resolve(self, dotted: str) -> tuple[Module, str] | None:
        """The module that defines `dotted`, and the name there; re-exports are followed."""
        name = self.module_of(dotted)
        if name is None or name == dotted:
            return None
        module, first = self.modules[name], dotted[len(name) + 1 :].split(".")[0]
        if first in module.definitions:
            return module, first
        target = module.imports.get(first)
        return self.resolve(target) if target is not None and target != dotted else None
