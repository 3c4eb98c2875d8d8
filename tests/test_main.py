"""The entry point: arguments, launching, the run folder, exit codes and status.json."""

from pathlib import Path

import pytest

from train import main as entry


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eq-dvea"], "did you mean 'eq-dvae'"),
        (["dvae", "--data", "nowhere"], "nowhere does not exist"),
        (["dvae", "--data", "."], "not a packed data set"),
        (["dvae", "--images", "0"], "at least 1"),
        (["dvae", "--track", "nothing"], "unknown tracker"),
        (["dvae", "--objective.beta", "-1"], "beta"),
    ],
)
def test_unusable_arguments_exit_with_2(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    try:
        code = entry.main(argv)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2 and message in " ".join(capfd.readouterr().err.split())
    assert not list(tmp_path.iterdir())
