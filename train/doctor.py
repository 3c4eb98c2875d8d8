"""`python -m train.doctor`: this machine, the data, what training chooses here, what to change.

The first thing that a bug report should hold. torch and what imports it are imported by the checks:
of a broken installation, too, each line has its value or says why that cannot be told.
"""

import getpass
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from common import machine
from common.command import run_command

if TYPE_CHECKING:
    import torch

    from shards.schema import DatasetMetadata
    from train.config import Config

LIMIT_S = 5.0  # per line, importing torch aside: file systems and drivers may not answer
IMPORT_LIMIT_S = 60.0
READ_BYTES, READ_S, READ_CHUNK = 256 << 20, 1.0, 4 << 20  # most that is read of the data
LOW_DISK = 2 << 30  # bytes
SLOW_READ = 10_000  # patches per second
GIGABYTE = 1e9
DATA, PROCESSED = "data/shards", "data/processed"


@dataclass(frozen=True)
class Line:
    """One fact: its value or, where it has none, why; and what the user can change."""

    name: str
    value: str | None = None
    unknown: str | None = None
    advice: str | None = None


Fact = str | tuple[str, str]  # the value, and advice
Check = Callable[[], Fact]


def diagnose(data: str | None = None) -> list[Line]:
    """Describe the machine, a packed data set, and the settings that training chooses for them.

    Nothing is raised, changed, downloaded or compiled, and no check is waited for longer than
    LIMIT_S; one that does not answer is left behind in a thread.

    Args:
        data: folder of a packed data set; None: data/shards.
    """
    named = DATA if data is None else data
    slow: dict[str, Check] = {"torch": _torch, "training": _training}  # no line imports more
    checks: dict[str, Check] = {
        "python": lambda: f"{sys.version.split()[0]} in {sys.prefix}",
        "system": _system,
        "packages": _packages,
        "code": _code,
        "user": _user,
        "cores": _cores,
        "memory": _memory,
        "GPU": _gpus,
        "compiler": _compiler,
        "disk, runs": partial(_disk, Path(PROCESSED)),
        "disk, temporary": lambda: _disk(Path(tempfile.gettempdir())),
        "data": partial(_data, named, data is None),
        "disk, data": lambda: _disk(_local(named)),
        "reading": partial(_reading, named),
        "size in memory": partial(_size, named),
        "device": lambda: str(_device()),
        "precision": lambda: str(_config(named).precision),
        "compile": partial(_compile, named),
        "storage": partial(_storage, named),
        "threads": _threads,
        "batch": lambda: f"{_config(named).batch_size:,}",
        "images": lambda: f"{_config(named).images:,}",
    }
    return [
        *(_line(name, check, IMPORT_LIMIT_S) for name, check in slow.items()),
        *(_line(name, check, LIMIT_S) for name, check in checks.items()),
    ]


def as_text(lines: list[Line]) -> str:
    """Align the lines, and repeat their advice at the end."""
    from common.console import printable

    width = max(len(line.name) for line in lines)
    rows = [
        f"{line.name:<{width}}  "
        + printable(f"unknown: {line.unknown}" if line.value is None else line.value)
        for line in lines
    ]
    advice = [f"- {line.name}: {printable(line.advice)}" for line in lines if line.advice]
    return "\n".join([*rows, "", "to change:", *(advice or ["- nothing"])])


def _line(name: str, check: Check, limit_s: float) -> Line:
    """Run a check in a thread, and leave it there where it does not end in time."""
    answers: list[Line] = []

    def answer() -> None:
        try:
            fact = check()
        except BaseException as error:  # a broken package may even exit
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            answers.append(Line(name, unknown=reason))
        else:
            value, advice = (fact, None) if isinstance(fact, str) else fact
            answers.append(Line(name, value, advice=advice))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(limit_s)
    return answers[0] if answers else Line(name, unknown=f"no answer within {limit_s:g} seconds")


def _torch() -> Fact:
    import torch

    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return f"{torch.__version__}, {cuda}"


def _training() -> Fact:
    import pipeline.index
    import train.launch

    return f"{train.launch.__name__} and {pipeline.index.__name__} can be imported"


def _system() -> Fact:
    import platform

    return f"{platform.platform()}, {machine.cpu_name()}"


def _packages() -> Fact:
    versions = {name: machine.version(name) for name in machine.PACKAGES}
    value = ", ".join(f"{name} {number or 'missing'}" for name, number in versions.items())
    if missing := [name for name, number in versions.items() if number is None]:
        return value, f"install {' '.join(missing)}, as with uv sync or pip install -e ."
    return value


def _code() -> Fact:
    commit = machine.git("rev-parse", "HEAD")
    if commit is None:
        raise RuntimeError("git is missing, or the code is not in a clone")
    return commit + (", changed since" if machine.code_changed() else "")


def _user() -> Fact:
    import pwd

    home = Path.home()
    try:
        pwd.getpwuid(os.getuid())
        entry = "in the passwd database"
    except KeyError:
        entry = f"not in the passwd database, called {getpass.getuser()}"
    writable = os.access(home, os.W_OK)
    value = f"uid {os.getuid()}, {entry}; home {'writable' if writable else 'not writable'}"
    if writable:
        return value
    return value, "set HOME to a folder that you can write to, for caches of torch and matplotlib"


def _cores() -> Fact:
    present, allowed = os.cpu_count(), len(machine.usable_core_numbers())
    quota = machine.cpu_quota()
    limit = "no quota" if quota is None else f"quota of the control group {quota:g}"
    return f"{machine.usable_cores()} usable: {present} present, {allowed} allowed, {limit}"


def _memory() -> Fact:
    import psutil

    memory, limit = psutil.virtual_memory(), machine.memory_limit()
    value = f"{_gigabytes(machine.available_memory())} available of {_gigabytes(memory.total)}"
    if limit is None:
        return f"{value}, no limit of a control group"
    return f"{value}, limit of the control group {_gigabytes(limit)}"


def _gpus() -> Fact:
    import torch

    from train import launch

    driver = Path("/proc/driver/nvidia/version")
    lines = driver.read_text().splitlines() if driver.is_file() else []
    named = lines[0].removeprefix("NVRM version:").strip() if lines else "no NVIDIA driver"
    if warning := launch.device_warning():
        return f"none that torch can use; {named}", warning
    if not torch.cuda.is_available():
        return f"none; {named}"
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    free, total = torch.cuda.mem_get_info(0)
    value = "; ".join(f"{each.name} (capability {each.major}.{each.minor})" for each in devices)
    value += f"; {_gigabytes(free)} of {_gigabytes(total)} free on the first; {named}"
    if len(devices) == 1:
        return value
    return value, (
        "one GPU is used unless you launch a process for each: accelerate launch "
        f"--config_file accelerate_config.yaml --num_processes {len(devices)} train/main.py"
    )


def _compiler() -> Fact:
    from train import launch

    if missing := launch.missing_compiler(_device()):
        return "none", missing
    path = launch.compiler(_device())
    return f"{path}; before training begins, a small function shows whether it works"


def _disk(folder: Path) -> Fact:
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(present)
    value = f"{_gigabytes(usage.free)} free of {_gigabytes(usage.total)}, {_file_system(present)}"
    if usage.free >= LOW_DISK:
        return value
    return value, f"make room where {folder} lies: less than {_gigabytes(LOW_DISK)} is free"


def _file_system(path: Path) -> str:
    import psutil

    mounts = [m for m in psutil.disk_partitions(all=True) if _is_under(path, m.mountpoint)]
    return max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else "of unknown type"


def _is_under(path: Path, mount: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(mount)


def _local(data: str) -> Path:
    if "://" in data:
        raise ValueError(f"{data} is remote, and nothing is downloaded here")
    return Path(data)


def _metadata(data: str) -> "DatasetMetadata":
    from shards.schema import load_metadata

    return load_metadata(_local(data))


def _usable(data: str) -> "DatasetMetadata":
    try:
        return _metadata(data)
    except Exception:
        raise LookupError("no data set can be read (see the line on data)") from None


def _data(data: str, is_default: bool) -> Fact:
    from common.errors import DataError

    try:
        metadata = _metadata(data)
    except ValueError as error:
        return "remote", f"{error}: python -m shards.fetch {data}, then --data with its folder"
    except DataError as error:
        if is_default and not Path(data).exists():
            return (
                f"no {data}: training packs data/raw, or draws a synthetic set",
                f"pack your patches: python -m shards.pack PATCHES {data}",
            )
        return "not usable", str(error)
    sizes = ", ".join(f"{name} {split.count:,}" for name, split in metadata.splits.items())
    value = f"{data}: {sizes}; {len(metadata.classes)} classes; {metadata.png} PNG"
    if "train" not in metadata.splits:
        return value, "there is no split train: pack again with one"
    return value


def _reading(data: str) -> Fact:
    folder, shards = _local(data), _usable(data).shards
    began, count = time.monotonic(), 0
    for size in _read(shard.tar(folder) for shard in shards):
        count += size
        seconds = time.monotonic() - began
        if count >= READ_BYTES or seconds > READ_S:
            break
    patches = sum(shard.count for shard in shards) / sum(shard.size for shard in shards)
    per_second = count * patches / seconds
    value = (
        f"{count / seconds / 1e6:,.0f} MB per second, {per_second:,.0f} patches per second "
        f"({count / 1e6:,.1f} MB read)"
    )
    if per_second >= SLOW_READ:
        return value
    return value, "copy the data set to a local disk: reading may be slower than training"


def _read(paths: Iterable[Path]) -> Iterator[int]:
    """Yield the size of every chunk of files, from the disk where the system drops its copy."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, READ_BYTES, os.POSIX_FADV_DONTNEED)
            while chunk := file.read(READ_CHUNK):
                yield len(chunk)


def _size(data: str) -> Fact:
    import torch

    from pipeline.loader import MEMORY_SHARE
    from shards.schema import PATCH_BYTES

    need = _usable(data).splits["train"].count * PATCH_BYTES
    places = {"memory": machine.available_memory()}
    if torch.cuda.is_available():
        places["memory of the GPU"] = torch.cuda.mem_get_info(0)[0]
    fits = [
        f"{'fits' if need < MEMORY_SHARE * free else 'does not fit'} in {MEMORY_SHARE:.0%} of the "
        f"free {place}"
        for place, free in places.items()
    ]
    return f"{_gigabytes(need)} for the train split, which {', '.join(fits)}"


def _storage(data: str) -> Fact:
    _usable(data)  # without data there is no choice
    return _config(data).storage


def _device() -> "torch.device":
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _config(data: str) -> "Config":
    """Resolve the settings of a launch of one process as training does."""
    from common.errors import DataError
    from pipeline.index import Split
    from shards.schema import SIDECAR, SplitMetadata
    from train import launch
    from train.config import Config

    split, png = SplitMetadata(0, [], []), "stored"
    try:
        metadata = _metadata(data)
        split, png = metadata.splits.get("train", split), metadata.png
    except (DataError, ValueError):  # the other settings do not depend on the data
        pass
    # the index of many patches takes long to read, and only the size of the split counts
    train = Split(Path(data), "train", split, png, SIDECAR.empty_table())
    return launch.resolve(Config(), train, _device(), 1)


def _compile(data: str) -> Fact:
    from train import launch

    if not _config(data).compile:
        return "no, as on every CPU; --compile True asks for it"
    return "no, for want of a compiler" if launch.missing_compiler(_device()) else "yes"


def _threads() -> Fact:
    threads, cores = machine.threads_for(None), machine.usable_cores()
    if threads == cores:
        return f"{threads} on a CPU"
    return (
        f"{threads} on a CPU",
        f"OMP_NUM_THREADS leaves {cores - threads} of {cores} cores idle: unset it, or --threads "
        f"{cores}",
    )


def _gigabytes(count: float) -> str:
    if count < 0.1 * GIGABYTE:
        return f"{count / 1e6:,.1f} MB"
    return f"{count / GIGABYTE:,.2f} GB"


_Data = Annotated[
    str | None, tyro.conf.arg(metavar="DIR", help="packed data set; default: data/shards")
]
_Json = Annotated[
    bool, tyro.conf.arg(name="json", help="print a JSON array of the lines instead of text")
]


def _command(data: _Data = None, as_json: _Json = False) -> Callable[[], None]:
    """Describe this machine, the data, what training chooses here, and what to change."""

    def action() -> None:
        lines = diagnose(data)
        text = json.dumps([asdict(line) for line in lines], indent=1)
        print(text if as_json else as_text(lines), flush=True)

    return action


def main() -> int:
    return run_command("train.doctor", _command)


if __name__ == "__main__":
    sys.exit(main())
