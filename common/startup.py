"""The environment that torch and its libraries read while they are loaded.

`common` calls `prepare_environment` when it is imported, since OpenMP reads its variables only
once. What the user has set stays.
"""

import getpass
import os
from pathlib import Path

# How often a thread looks again before it sleeps, where libgomp's default is 300,000 (a few ms).
# Chosen by `python bench/throughput.py neighbours`: see bench/LOG.md.
SPIN_COUNT = 10_000
SPINNING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def prepare_environment() -> None:
    """Limit the spinning of OpenMP's threads, and name the user where the system does not.

    The threads of two trainings, or of a training beside another program, would take the cores
    from each other while they wait. torch's compiler and other libraries ask for the name of the
    user and the home folder, which a container's user without a passwd entry does not have.
    """
    if not any(name in os.environ for name in SPINNING):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"  # as container engines set it
