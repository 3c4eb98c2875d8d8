"""What every evaluation writes: OUT/results.json and OUT/scores.parquet."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from common.console import log
from common.machine import environment
from eval.json_records import save
from eval.measure.probing import Probed
from eval.measure.scores import SCORES
from eval.results import RESULTS, VERSION, DataFacts, Results
from eval.session import Session


def data_facts(session: Session) -> DataFacts:
    """Describe the data set of a session."""
    return DataFacts(hash=session.data.hash, root=str(session.data.root))


def write(
    out: Path, session: Session, results: Results, probed: Probed | None, hashes: Mapping[str, str]
) -> Results:
    """Add to results what every evaluation has, write them and the scores, and return them.

    Args:
        results: the sections that this kind of evaluation has.
        probed: sections and scores of the probes; None where the data cannot be probed.
        hashes: of the model and the data set, written as metadata of the scores.
    """
    if probed is not None:
        facts = {**hashes, "image_limits": results.protocol.image_limits}
        probed.book.write(out / SCORES, facts)
        results = replace(
            results,
            probe=probed.probe,
            other_probes=probed.other_probes,
            budgets=probed.budgets,
            robustness=probed.robustness,
        )
    results = replace(
        results,
        version=VERSION,
        notices=session.notices,
        environment=environment(),
        seconds=session.seconds,
    )
    save(out / RESULTS, results)
    log.info(f"{out / RESULTS} written after {results.seconds} s")
    return results
