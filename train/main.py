"""`accelerate launch train/main.py [PRESET]`: train, evaluate, report; compare two by default.

Exit status of `python train/main.py`: 0 done, 1 failed, 2 unusable arguments, 75 interrupted after
saving. The launchers turn any failure into 1: scripts should read RUN/status.json instead.
"""

import sys
import time

from common.command import STOPPED, UNUSABLE_ARGUMENTS, interruptions_kept, stopped_by_signals
from common.console import log, prepare_streams, show_messages
from common.errors import DataError
from train.arguments import parse


def main(argv: list[str]) -> int:
    began = time.monotonic()
    prepare_streams()
    show_messages()
    try:
        with stopped_by_signals():
            by_preset = parse(argv)
            log.info("importing torch ...")  # takes seconds
            from train import program
    except (DataError, ValueError, OSError) as error:
        log.error(str(error))
        return UNUSABLE_ARGUMENTS
    except KeyboardInterrupt:
        log.error("interrupted before training began")
        return STOPPED
    with interruptions_kept():
        return program.main(by_preset, began)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
