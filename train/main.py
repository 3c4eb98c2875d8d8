"""`accelerate launch train/main.py [PRESET]`: train, evaluate, report; compare two by default.

Exit status of `python train/main.py`: 0 done, 1 failed, 2 unusable arguments, 75 interrupted after
saving. The launchers turn any failure into 1: scripts should read RUN/status.json instead.
"""

import sys
import time


def main() -> int:
    began = time.monotonic()
    print("importing torch ...", flush=True)  # takes seconds, also for --help
    from train import program

    return program.main(sys.argv[1:], began)


if __name__ == "__main__":
    sys.exit(main())
