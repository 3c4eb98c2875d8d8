"""What all commands have in common."""

import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

from tests.helpers.source_tree import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
PATHS = ("train/main.py", "bench/throughput.py")
HELP = """
import contextlib, io, runpy, sys
for command in sys.argv[1:]:
    sys.argv = [command, "--help"]
    run = runpy.run_path if command.endswith(".py") else runpy.run_module
    shown = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
        run(command, run_name="__main__")
    assert "--help" in shown.getvalue(), f"{command} shows no help"
    assert "torch" not in sys.modules, f"{command} --help imports torch"
"""


def modules_that_are_commands() -> list[str]:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    calls = [re.findall(r'run_command\(\s*"(.+?)"', path.read_text()) for path in paths]
    return sorted(chain.from_iterable(calls))


def test_no_command_imports_torch_to_show_its_help() -> None:
    commands = [*PATHS, *modules_that_are_commands()]
    assert {"shards.pack", "eval.main", "train.sweep", "models.export"} < {*commands}
    ended = subprocess.run(
        [sys.executable, "-c", HELP, *commands], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
