"""What a crash at any point of a command may leave on disk.

The file operations of the command are recorded by strace, which sees those of libraries as well.
Every prefix of them is replayed into a model of a file system that promises what POSIX does: the
data of a file is on disk after an fsync of the file, and creations, renames and removals after an
fsync of their folder. Until then each may be lost without those before or after it.
"""

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CALLS = (
    *("openat", "write", "pwrite64", "writev", "lseek", "ftruncate", "fsync", "fdatasync"),
    *("rename", "renameat", "renameat2", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir"),
    *("clone", "clone3", "fork", "vfork"),
)
RENAMES = ("rename", "renameat", "renameat2")
REMOVALS = ("unlink", "unlinkat", "rmdir")
_CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (\d+)")
_PART = re.compile(r"(\d+) +(?:<\.\.\. \w+ resumed>)?(.*?)(?: <unfinished \.\.\.>)?$")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FILE = re.compile(r"^(\d+)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")

Tree = dict[str, bytes | None]  # content by path below the root; None: a folder


@dataclass(frozen=True)
class Operation:
    """A change of one file or folder below the root."""

    kind: str  # create, mkdir, write, cut, sync, rename, remove
    path: str
    target: str = ""  # of a rename
    data: bytes = b""
    offset: int = 0  # of a write; the length after a cut


@dataclass
class _File:
    data: bytes = b""
    synced: bytes = b""


@dataclass
class _Folder:
    names: dict[str, "_File | _Folder"] = field(default_factory=dict)
    synced: dict[str, "_File | _Folder"] = field(default_factory=dict)
    pending: list[dict[str, "_File | _Folder | None"]] = field(default_factory=list)

    def change(self, names: dict[str, "_File | _Folder | None"]) -> None:
        self.pending.append(names)
        _update(self.names, names)


def _update(names: dict[str, _File | _Folder], changes: dict[str, _File | _Folder | None]) -> None:
    for name, node in changes.items():
        names.pop(name, None)
        if node is not None:
            names[name] = node


class Disk:
    """The model of a file system, which begins with a tree that is on disk."""

    def __init__(self, tree: Tree) -> None:
        self.root = _Folder()
        for path in sorted(tree):
            content = tree[path]
            folder, name = self._parent(path)
            folder.names[name] = _Folder() if content is None else _File(content, content)
        for folder in self._folders(self.root):
            folder.synced = dict(folder.names)

    def _folders(self, folder: _Folder) -> Iterator[_Folder]:
        yield folder
        for node in folder.names.values():
            if isinstance(node, _Folder):
                yield from self._folders(node)

    def _parent(self, path: str) -> tuple[_Folder, str]:
        *folders, name = path.split("/")
        folder = self.root
        for part in folders:
            inner = folder.names[part]
            assert isinstance(inner, _Folder)
            folder = inner
        return folder, name

    def apply(self, operation: Operation) -> None:
        if operation.path == "":
            if operation.kind == "sync":
                self._sync(self.root)
            return
        folder, name = self._parent(operation.path)
        if operation.kind == "mkdir":
            folder.change({name: _Folder()})
        elif operation.kind == "create":
            if name not in folder.names:
                folder.change({name: _File()})
        elif operation.kind == "remove":
            folder.change({name: None})
        elif operation.kind == "rename":
            other, target = self._parent(operation.target)
            assert other is folder, "a rename between folders is not modelled"
            folder.change({name: None, target: folder.names[name]})
        elif operation.kind == "sync":
            self._sync(folder.names[name])
        else:
            self._write(folder.names[name], operation)

    def _sync(self, node: _File | _Folder) -> None:
        if isinstance(node, _File):
            node.synced = node.data
        else:
            node.synced = dict(node.names)
            node.pending.clear()

    def _write(self, file: _File | _Folder, operation: Operation) -> None:
        assert isinstance(file, _File)
        at, data = operation.offset, operation.data
        if operation.kind == "cut":
            file.data = file.data[:at].ljust(at, b"\0")
            return
        at = len(file.data) if at < 0 else at  # appended
        file.data = file.data[:at].ljust(at, b"\0") + data + file.data[at + len(data) :]

    def after_a_crash(self, how: str, draw: random.Random) -> Tree:
        """Return what is on disk.

        Args:
            how: "killed": all of it; "lost": only what was synced; "names": all names, but only
                the data that was synced; "some": of what was not synced anything.
        """
        tree: Tree = {}
        self._collect(self.root, "", tree, how, draw)
        return tree

    def _collect(
        self, folder: _Folder, prefix: str, tree: Tree, how: str, draw: random.Random
    ) -> None:
        names = dict(folder.synced if how in ("lost", "some") else folder.names)
        for change in folder.pending if how == "some" else ():
            if draw.random() < 0.5:
                _update(names, change)
        for name, node in names.items():
            if isinstance(node, _Folder):
                tree[prefix + name] = None
                self._collect(node, f"{prefix}{name}/", tree, how, draw)
            elif how == "killed":
                tree[prefix + name] = node.data
            elif how == "some" and node.data != node.synced:
                pairs = zip(node.data, node.synced, strict=False)
                same = sum(takewhile(bool, (a == b for a, b in pairs)))  # stays in any case
                half = node.data[: max(same, len(node.data) // 2)]
                tree[prefix + name] = draw.choice([node.data, node.synced, half])
            else:
                tree[prefix + name] = node.synced


WAYS = ("killed", "lost", "names", "some", "some")


@dataclass(frozen=True)
class CrashState:
    """A tree that a crash may leave, and how to find it again."""

    step: int  # operations before the crash
    how: str
    last: str  # operation
    tree: Tree

    def __str__(self) -> str:
        return f"after {self.step} operations ({self.last}), {self.how}"


def crash_states(before: Tree, operations: list[Operation]) -> list[CrashState]:
    """List the distinct trees that a crash after any prefix of the operations may leave."""
    disk, draw, states = Disk(before), random.Random(0), dict[int, CrashState]()
    for step, operation in enumerate(operations, 1):
        disk.apply(operation)
        last = f"{operation.kind} {operation.path}"
        for how in WAYS:
            tree = disk.after_a_crash(how, draw)
            states.setdefault(hash(frozenset(tree.items())), CrashState(step, how, last, tree))
    return list(states.values())


def read_tree(root: Path) -> Tree:
    """Read everything below a folder."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def write_tree(tree: Tree, root: Path) -> None:
    """Make a folder hold a tree and nothing else."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for path in sorted(tree):
        content = tree[path]
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def record(code: str, arguments: list[str], root: Path) -> list[Operation]:
    """Run Python code in a process of its own, and return its operations below `root`.

    Operations replayed from the tree that `root` held must give the tree that it holds: what
    the recording does not see, such as a file written through memory, fails here.
    """
    before, log = read_tree(root), root.with_name(root.name + ".strace")
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-xx", "-s", str(1 << 28)]
    strace += ["-e", "trace=" + ",".join(CALLS), "-e", "signal=none", "-o", str(log)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*strace, sys.executable, "-c", code, *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    operations = list(_operations(log, root.resolve()))
    disk = Disk(before)
    for operation in operations:
        disk.apply(operation)
    assert disk.after_a_crash("killed", random.Random(0)) == read_tree(root)
    return operations


def _calls(log: Path) -> Iterator[tuple[str, str, str, int]]:
    """Yield process, name, arguments and result of every call that succeeded, as it ended."""
    begun: dict[str, str] = {}
    with open(log, encoding="ascii") as lines:
        for line in lines:
            if not (part := _PART.match(line.rstrip("\n"))):
                continue
            process = part[1]
            text = begun.pop(process, "") + part[2]
            if line.rstrip().endswith("<unfinished ...>"):
                begun[process] = text
            elif call := _CALL.match(f"{process} {text}"):
                yield process, call[2], call[3], int(call[4])


def _operations(log: Path, root: Path) -> Iterator[Operation]:
    group: dict[str, str] = {}  # of the threads of a process, which share their open files
    offsets: dict[tuple[str, str], int] = {}

    def below(path: str) -> str | None:
        place = Path(path)
        if not place.is_relative_to(root):
            return None
        relative = place.relative_to(root).as_posix()
        return "" if relative == "." else relative

    for process, name, arguments, result in _calls(log):
        own = group.setdefault(process, process)
        if name in ("clone", "clone3", "fork", "vfork"):
            group[str(result)] = own if "CLONE_THREAD" in arguments else str(result)
            continue
        texts = [_unescaped(text) for text in _TEXT.findall(arguments)]
        if name == "openat":
            path = below(os.fsdecode(texts[0]))
            if path is None or path == "" or "O_DIRECTORY" in arguments:
                continue
            offsets[own, str(result)] = -1 if "O_APPEND" in arguments else 0
            if "O_CREAT" in arguments:
                yield Operation("create", path)
            if "O_TRUNC" in arguments:
                yield Operation("cut", path)
        elif name in RENAMES:
            old, new = (below(os.fsdecode(text)) for text in texts)
            if old is not None and new is not None:
                yield Operation("rename", old, new)
        elif name in ("mkdir", "mkdirat") or name in REMOVALS:
            path = _target(arguments, os.fsdecode(texts[0]), below)
            if path:
                yield Operation("remove" if name in REMOVALS else "mkdir", path)
        elif (file := _FILE.match(arguments)) and not file[3]:
            path = below(os.fsdecode(_unescaped(file[2])))
            if path is None:
                continue
            key = own, file[1]
            if name in ("fsync", "fdatasync"):
                yield Operation("sync", path)
            elif name == "ftruncate":
                yield Operation("cut", path, offset=int(arguments.rpartition(" ")[2]))
            elif name == "lseek" and offsets.get(key, -1) >= 0:
                offsets[key] = result
            elif name == "pwrite64":
                at = int(arguments.rpartition(" ")[2])
                yield Operation("write", path, data=texts[0][:result], offset=at)
            elif name in ("write", "writev"):
                at = offsets.get(key, -1)
                yield Operation("write", path, data=b"".join(texts)[:result], offset=at)
                if at >= 0:
                    offsets[key] = at + result


def _target(arguments: str, path: str, below: Callable[[str], str | None]) -> str | None:
    """Return the path of a call whose first argument may be a folder, as those of rmtree."""
    folder = _FILE.match(arguments)
    return below(str(Path(os.fsdecode(_unescaped(folder[2])), path)) if folder else path)


def _unescaped(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
