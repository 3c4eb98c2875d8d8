"""The processes and the device of a launch, and the settings that depend on them."""

import os
import shutil
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from common.errors import DataError
from common.machine import threads_for, use_threads
from common.ranks import PATIENCE, local_ranks
from pipeline.index import Split
from pipeline.loader import choose_storage
from train.config import Config

BF16_CAPABILITY = (8, 0)
CPU_BATCH, GPU_BATCH = 64, 2048
CPU_IMAGES, GPU_IMAGES = 100_000, 20_000_000


def start_accelerator(threads: int | None = None) -> Accelerator:
    """Make the accelerator of this rank and set its threads.

    The launcher sets OMP_NUM_THREADS=1, which halves the speed on CPU; usable cores are shared
    among the ranks of this machine instead.

    Args:
        threads: as the user says; None: as `threads_for`, on a CPU.

    Raises:
        DataError: the launcher started more processes than take part.
    """
    cpu = not torch.cuda.is_available()
    if cpu or threads:
        use_threads(threads_for(threads, local_ranks()))
    # precision, accumulation and compilation come from the run, not from accelerate's stored config
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
    patient = InitProcessGroupKwargs(timeout=PATIENCE)  # while the main rank packs
    accelerator = Accelerator(
        cpu=cpu, mixed_precision="no", dynamo_backend="no", kwargs_handlers=[patient]
    )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != accelerator.num_processes:
        raise DataError(
            f"the launcher started {world} processes but {accelerator.num_processes} take part; "
            "launch with: accelerate launch --config_file accelerate_config.yaml "
            f"--num_processes {world} train/main.py"
        )
    return accelerator


def device_warning() -> str | None:
    """Warning for a user whose NVIDIA device torch cannot use; None when all is well."""
    if torch.cuda.is_available() or not Path("/dev/nvidiactl").exists():
        return None
    return (
        "this machine has an NVIDIA device, but torch cannot use it and training runs on "
        f"the CPU. torch {torch.__version__} was built for CUDA {torch.version.cuda}: update the "
        "driver, or install a torch wheel built for your driver's CUDA version."
    )


def resolve(config: Config, split: Split, device: torch.device, ranks: int) -> Config:
    """Replace every `None` and "auto" by a value for this device and data.

    Raises:
        DataError: settings that this device cannot run.
    """
    cuda = device.type == "cuda"
    bf16 = has_bf16(device)
    if config.precision == "bf16" and cuda and not bf16:
        raise DataError("bf16 needs a GPU of compute capability 8.0; use --precision fp32")
    batch = config.batch_size or (GPU_BATCH if cuda else CPU_BATCH)
    if batch % ranks:
        raise DataError(f"--batch-size {batch} is not divisible by {ranks} processes")
    if missing := _kinds_without_place(config, batch // ranks):
        least = next(n for n in count(batch // ranks) if not _kinds_without_place(config, n))
        raise DataError(
            f"a batch of {batch // ranks} per process has no place for the corruptions {missing}: "
            f"use --batch-size {least * ranks} or more, or leave kinds out, as with "
            f"--corruption.{missing[0]} 0"
        )
    storage = config.storage
    if storage == "device" and not cuda:
        raise DataError("--storage device needs a GPU; use host or stream")
    compiled = cuda if config.compile is None else config.compile
    if config.cuda_graphs and not compiled:
        raise DataError("--cuda-graphs replays a compiled step: add --compile")
    return replace(
        config,
        batch_size=batch,
        images=config.images or (GPU_IMAGES if cuda else CPU_IMAGES),
        precision=config.precision or ("bf16" if bf16 else "fp32"),
        compile=compiled,
        storage=choose_storage(split, device, local_ranks()) if storage == "auto" else storage,
    )


def _kinds_without_place(config: Config, batch: int) -> list[str]:
    counts, shares = config.corruption.counts(batch), config.corruption.shares
    return [kind for kind, n in counts.items() if not n and shares[kind] > 0]


def compile_obstacle(device: torch.device) -> str | None:
    """Say in one line why torch cannot compile for this device; None where it can.

    A compiler that is missing is named; all else shows when a small function is compiled.
    """
    return missing_compiler(device) or compile_failure(device)


@cache  # it takes seconds, and a comparison asks for each of its runs
def compile_failure(device: torch.device) -> str | None:
    """Compile a small function; say in one line why that fails, None where it works.

    Headers may be missing, or a folder for compiled code read-only, full, or not executable.
    """
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compilers raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"torch cannot compile on this machine ({': '.join(lines[:2])[:300]})"
    finally:
        torch.compiler.reset()
    return None


def compiler(device: torch.device) -> str | None:
    """Return the path of the compiler that torch would call; None where there is none."""
    return next(filter(None, map(shutil.which, _compilers(device))), None)


def _compilers(device: torch.device) -> list[str]:
    """Name those that torch tries: of C++ for a CPU, of C for the launchers of kernels."""
    cuda = device.type == "cuda"
    named = os.environ.get("CC" if cuda else "CXX")
    return [named] if named else ["cc", "gcc", "clang"] if cuda else ["g++"]


def missing_compiler(device: torch.device) -> str | None:
    """Say what to install where there is no compiler; None where there is one."""
    if compiler(device):
        return None
    language = "C" if device.type == "cuda" else "C++"
    names = " or ".join(_compilers(device))
    return (
        f"there is no {language} compiler ({names}), which compiling the step "
        "needs: install one, as with apt-get install g++ or conda install gxx"
    )


def has_bf16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 natively."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def set_deterministic() -> None:
    """Restrict torch to deterministic kernels; call before the first one runs on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
