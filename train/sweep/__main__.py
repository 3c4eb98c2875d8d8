"""`python -m train.sweep RECIPE`: the runs of an ablation, here or as jobs of Slurm.

The same command continues: runs that are done are skipped, interrupted and failed ones resumed.
Exit status: 0 all done (or submitted), 1 some failed or unusable data, 2 unusable arguments,
75 and 130 interrupted by a signal and by Ctrl-C, after the runs have saved.
"""

import sys
from collections.abc import Callable
from typing import Annotated

import tyro

from common.command import DONE, run_command
from train.sweep.options import Options
from train.sweep.recipes import RECIPES

_Recipe = Annotated[str, tyro.conf.arg(metavar="RECIPE", help=", ".join(RECIPES))]
_Options = Annotated[Options, tyro.conf.arg(name="")]
_DEFAULTS = Options()


def _command(
    recipe: tyro.conf.Positional[_Recipe],
    options: _Options = _DEFAULTS,
) -> Callable[[], int]:
    """Train and evaluate the runs of an ablation; repeat the command to continue a sweep."""
    from train.sweep.local import share_of_quota
    from train.sweep.runs import EVALUATE, Programs  # these import torch: not for --help
    from train.sweep.sweep import describe, plan, sweep

    runs = plan(recipe, options)

    def action() -> int:
        if options.dry_run:
            describe(runs)
            return DONE
        evaluate = EVALUATE if options.evaluate == "full" else None
        threads = options.threads or share_of_quota(options.jobs)
        return sweep(runs, options, Programs(evaluate=evaluate, threads=threads))

    return action


def main() -> int:
    return run_command("train.sweep", _command)


if __name__ == "__main__":
    sys.exit(main())
