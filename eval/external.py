"""`python -m eval.external FEATURES --data DIR --name NAME --out OUT`: evaluate any encoder.

FEATURES is a file or folder that `eval.external_features` reads.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from common.locks import held
from common.machine import keep_freed_memory, threads_for, use_threads
from eval.config import EXTERNAL_DEFAULTS, ExternalConfig, Threads

_FEATURES = "embeddings to evaluate: a .parquet, .npy or .h5 file, or a folder of them"
_Features = Annotated[Path, tyro.conf.arg(metavar="FEATURES", help=_FEATURES)]
_Config = Annotated[ExternalConfig, tyro.conf.arg(name="")]


def _command(
    features: tyro.conf.Positional[_Features],
    data: str,
    name: str,
    out: Path,
    threads: Threads = None,
    config: _Config = EXTERNAL_DEFAULTS,
) -> Callable[[], None]:
    """Evaluate embeddings made elsewhere: OUT/results.json and OUT/scores.parquet.

    Args:
        data: Packed data set whose patches the embeddings are of, or its URL.
        name: Name of the encoder in reports.
        out: Folder to write results.json and scores.parquet to.
    """
    count = threads_for(threads)

    def action() -> None:
        from eval.external_evaluation import evaluate_embeddings  # imports torch: not for --help

        keep_freed_memory()
        use_threads(count)
        with held(out, "writes results there"):
            evaluate_embeddings(features, data, name, out, config)

    return action


def main() -> int:
    return run_command("eval.external", _command)


if __name__ == "__main__":
    sys.exit(main())
