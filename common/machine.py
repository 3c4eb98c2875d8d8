"""How many processor cores this process may use."""

import os


def usable_cores() -> int:
    """Those of its affinity, as a scheduler sets it; macOS has none to ask for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
