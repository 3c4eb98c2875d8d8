"""Bytes: what a step keeps for its backward pass, and what its operations read and write.

Nothing here is timed; the counts are exact for the step as it runs without a compiler.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# moves nothing though it is no view by its schema
STILL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes behind a tensor, once each: what is expanded is stored, and read, once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    count = 1
    for size, stride in sizes:
        count *= size if stride else min(size, 1)
    return count * tensor.element_size()


class Traffic(TorchDispatchMode):
    """Sums the bytes of every tensor that an operation reads and of every one that it writes.

    That is the memory traffic of a step run operation by operation, were no cache to hold a
    tensor between two of them; views and allocations move nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func._schema.name.split("::")[1] not in STILL:
            leaves = tree_leaves((args, kwargs, result))
            self.bytes += sum(tensor_bytes(t) for t in leaves if isinstance(t, Tensor))
        return result


def moved(call: Callable[[], Any]) -> int:
    """Bytes that the operations of `call` read and write, backward pass included."""
    with Traffic() as traffic:
        call()
    return traffic.bytes


@contextmanager
def saved() -> Iterator[dict[int, int]]:
    """Bytes by storage of what is kept for a backward pass while it has not run.

    Read it before the backward pass: afterwards memory may be used anew. Weights count as well.
    """
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield storages


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """The most bytes that tensors took on a GPU during `call`; None on a CPU.

    There the allocator keeps what was freed, so the resident size says nothing about one step.
    """
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
