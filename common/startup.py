"""The environment that torch and its libraries read while they are loaded.

`common` calls `prepare_environment` when it is imported. What the user has set stays. How long
OpenMP's threads spin is left to them: no count is better than libgomp's own both for a training
alone and for two side by side (bench/LOG.md, "How long threads spin").
"""

import getpass
import os
from pathlib import Path


def prepare_environment() -> None:
    """Name the user and the home folder where the system does not.

    torch's compiler and other libraries ask for them, and a container's user without a passwd entry
    has neither.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"  # as container engines set it
