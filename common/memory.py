"""Memory that torch frees stays with the process, so that the next batch takes it as it is.

glibc gives large blocks back to the system and asks for them anew: encoding on CPU then spends
half its time on page faults (bench/LOG.md).
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
KEPT = 256 << 20  # bytes of freed memory, at most
LARGEST = 32 << 20  # bytes of a block that comes from it: the most that glibc allows


@cache
def keep_freed() -> bool:
    """Once for the process; False where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_TRIM_THRESHOLD, KEPT) and mallopt(_MMAP_THRESHOLD, LARGEST))
