"""The batch scripts in a real Slurm of two nodes on this machine."""

from pathlib import Path

import pytest

from tests.helpers.slurm import MISSING, WHY_SKIPPED, Slurm, job_output
from tests.helpers.training import load_undamaged, newest_tensors, run_status, same_tensors

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(MISSING), reason=WHY_SKIPPED)]


@pytest.fixture(scope="module")
def reference(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """(a) A job that is left alone."""
    out = tmp_path_factory.mktemp("slurm") / "run"
    assert slurm.wait(slurm.submit("one_node.sbatch", out), out) == ("COMPLETED", 0), job_output(
        out
    )
    assert run_status(out) == "done" and (out / "results.json").is_file()
    return out


@pytest.mark.parametrize("how", ["time limit", "preempted"])
def test_an_interrupted_job_is_requeued_and_ends_identical(
    how: str, slurm: Slurm, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    number = slurm.submit("one_node.sbatch", out)
    slurm.wait_for_checkpoint(number, out)
    if how == "time limit":  # what --signal=B:USR1@120 sends
        slurm.call("scancel", "--batch", "--signal=USR1", number)
    else:
        slurm.preempt()
    assert slurm.wait(number, out) == ("COMPLETED", 1), job_output(out)
    assert run_status(out) == "done" and "resuming after" in job_output(out)
    assert same_tensors(newest_tensors(reference), newest_tensors(out))


def test_a_cancelled_job_stays_cancelled(slurm: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "run"
    number = slurm.submit("one_node.sbatch", out)
    slurm.wait_for_checkpoint(number, out)
    slurm.call("scancel", number)
    assert slurm.wait(number, out) == ("CANCELLED", 0), job_output(out)


def test_a_failing_job_fails(slurm: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "run"
    number = slurm.submit("one_node.sbatch", out, "--data", str(tmp_path / "nowhere"))
    assert slurm.wait(number, out) == ("FAILED", 0)
    assert "nowhere does not exist" in job_output(out)


def test_two_nodes_train_and_continue_after_an_interruption(slurm: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "run"
    number = slurm.submit("multi_node.sbatch", out)
    slurm.wait_for_checkpoint(number, out)
    slurm.call("scancel", "--batch", "--signal=USR1", number)
    assert slurm.wait(number, out) == ("COMPLETED", 1), job_output(out)
    assert run_status(out) == "done" and "resuming after" in job_output(out)
    checkpoint = load_undamaged(out)
    assert checkpoint is not None and checkpoint.meta["processes"] == 2
