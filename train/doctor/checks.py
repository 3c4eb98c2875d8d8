"""The checks of the doctor: each returns its value, or a value and advice, or raises.

torch and what imports it are imported by the checks: of a broken installation, too, each line has
its value or says why that cannot be told.
"""

import getpass
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from common import machine

if TYPE_CHECKING:
    import torch

    from shards.schema import DatasetMetadata
    from train.config import Config

READ_BYTES, READ_S, READ_CHUNK = 256 << 20, 1.0, 4 << 20  # most that is read of the data
LOW_DISK = 2 << 30  # bytes
WATCH_S = 0.5
SLOW_READ = 10_000  # patches per second
GIGABYTE = 1e9

Fact = str | tuple[str, str]  # the value, and advice


def torch_build() -> Fact:
    """Version of torch, and the CUDA that it was built for."""
    import torch

    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return f"{torch.__version__}, {cuda}"


def imports() -> Fact:
    """Whether what training runs can be imported."""
    import pipeline.index
    import train.launch

    return f"{train.launch.__name__} and {pipeline.index.__name__} can be imported"


def packages() -> Fact:
    """Versions of the packages; advises to install what is missing."""
    versions = {name: machine.version(name) for name in machine.PACKAGES}
    value = ", ".join(f"{name} {number or 'missing'}" for name, number in versions.items())
    if missing := [name for name, number in versions.items() if number is None]:
        return value, f"install {' '.join(missing)}, as with uv sync or pip install -e ."
    return value


def code() -> Fact:
    """The commit of the code."""
    commit = machine.git("rev-parse", "HEAD")
    if commit is None:
        raise RuntimeError("git is missing, or the code is not in a clone")
    return commit + (", changed since" if machine.code_changed() else "")


def user() -> Fact:
    """The user, and whether the home folder is writable."""
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


def cores() -> Fact:
    """The cores that may be used, and what limits them."""
    present, allowed = os.cpu_count(), len(machine.usable_core_numbers())
    quota = machine.cpu_quota()
    limit = "no quota" if quota is None else f"quota of the control group {quota:g}"
    return f"{machine.usable_cores()} usable: {present} present, {allowed} allowed, {limit}"


def memory() -> Fact:
    """Available memory, and what limits it."""
    import psutil

    total, limit = psutil.virtual_memory().total, machine.memory_limit()
    value = f"{_gigabytes(machine.available_memory())} available of {_gigabytes(total)}"
    if limit is None:
        return f"{value}, no limit of a control group"
    return f"{value}, limit of the control group {_gigabytes(limit)}"


def gpus() -> Fact:
    """The GPUs that torch can use, and the driver."""
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


def compiler() -> Fact:
    """The compiler that compiling the step would call."""
    from train import launch

    if missing := launch.missing_compiler(device()):
        return "none", missing
    path = launch.compiler(device())
    return f"{path}; before training begins, a small function shows whether it works"


def disk(folder: Path) -> Fact:
    """Free space and kind of the file system where a folder is or would be."""
    import psutil

    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(present)
    real = Path(os.path.realpath(present))
    mounts = [m for m in psutil.disk_partitions(all=True) if real.is_relative_to(m.mountpoint)]
    kind = max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else "of unknown type"
    value = f"{_gigabytes(usage.free)} free of {_gigabytes(usage.total)}, {kind}"
    if usage.free >= LOW_DISK:
        return value
    return value, f"make room where {folder} lies: less than {_gigabytes(LOW_DISK)} is free"


def local(data: str) -> Path:
    """The folder of a data set that is on this machine."""
    if "://" in data:
        raise ValueError(f"{data} is remote, and nothing is downloaded here")
    return Path(data)


def _metadata(data: str) -> "DatasetMetadata":
    from shards.schema import load_metadata

    return load_metadata(local(data))


def _usable(data: str) -> "DatasetMetadata":
    try:
        return _metadata(data)
    except Exception:
        raise LookupError("no data set can be read (see the line on data)") from None


def data_set(data: str, is_default: bool) -> Fact:
    """Splits and classes of the data set."""
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


def reading(data: str) -> Fact:
    """The speed of reading the shards, for about a second."""
    folder, shards = local(data), _usable(data).shards
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


def size_in_memory(data: str) -> Fact:
    """The size of the train split, and where it fits."""
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


def storage(data: str) -> Fact:
    """Where training would keep the patches."""
    _usable(data)  # without data there is no choice
    return config_for(data).storage


def device() -> "torch.device":
    """The device that training would use."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def config_for(data: str) -> "Config":
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
    return launch.resolve(Config(), train, device(), 1)


def compiled(data: str) -> Fact:
    """Whether training would compile the step."""
    from train import launch

    if not config_for(data).compile:
        return "no, as on every CPU; --compile True asks for it"
    return "no, for want of a compiler" if launch.missing_compiler(device()) else "yes"


def threads() -> Fact:
    """The threads that training would use, and whether other programs leave them their cores."""
    count, usable = machine.threads_for(None), machine.usable_cores()
    neighbours = machine.Neighbours()
    time.sleep(WATCH_S)
    if crowded := machine.crowding(neighbours.cores(), count):
        return f"{count} on a CPU", crowded
    if count == usable:
        return f"{count} on a CPU"
    return (
        f"{count} on a CPU",
        f"OMP_NUM_THREADS leaves {usable - count} of {usable} cores idle: unset it, or --threads "
        f"{usable}",
    )


def _gigabytes(count: float) -> str:
    if count < 0.1 * GIGABYTE:
        return f"{count / 1e6:,.1f} MB"
    return f"{count / GIGABYTE:,.2f} GB"
