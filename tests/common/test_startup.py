"""The environment before torch is loaded: how threads wait, and users that the system cannot name.

The kind: containers that run as a number (`docker --user`, OpenShift), with and without HOME and
USER; a user who has chosen how threads wait, by either variable; a process that imports any
package of the project first.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
NO_PASSWD = """
import pwd
def unknown(key):
    raise KeyError(f"uid not found: {key}")
pwd.getpwuid = pwd.getpwnam = unknown
"""


def python(code: str, **environment: str) -> str:
    """What a process prints that has none of NAMES in its environment, except those given."""
    inherited = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["common.errors", "train.step"])
def test_how_threads_wait_is_left_as_it_is(module: str) -> None:
    code = f"import os, {module}; print([os.environ.get(n) for n in {NAMES[-2:]}])"
    assert python(code) == str([None, None])


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_the_choice_of_the_user_stays(name: str) -> None:
    code = f"import os, common; print({{n: os.environ.get(n) for n in {NAMES[-2:]}}})"
    other = dict.fromkeys(NAMES[-2:])
    assert python(code, **{name: "7"}) == str({**other, name: "7"})


@pytest.mark.parametrize("home", [{}, {"HOME": "/"}])
def test_a_user_without_a_passwd_entry_has_a_name_and_a_home(home: dict[str, str]) -> None:
    code = "import common, getpass, pathlib; print(getpass.getuser(), pathlib.Path.home())"
    assert python(NO_PASSWD + code, **home) == f"uid{os.getuid()} /"
    assert python(NO_PASSWD + code, USER="ada", HOME="/home/ada") == "ada /home/ada"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["train/main.py", "--help"],
        *(
            ["-m", name, "--help"]
            for name in (
                *("eval.main", "eval.embed", "eval.external", "eval.report", "eval.transfer"),
                *("shards.pack", "shards.merge", "shards.verify", "shards.fetch", "shards.sites"),
                *("shards.synthetic", "train.sweep"),
            )
        ),
    ],
    ids=lambda words: words[-2],
)
def test_every_command_starts_without_a_passwd_entry(command: list[str]) -> None:
    start = """
import runpy, sys
sys.argv = sys.argv[1:]
if sys.argv[0] == "-m":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
    inherited = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", NO_PASSWD + start, *command],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr
