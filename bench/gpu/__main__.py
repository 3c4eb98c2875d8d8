"""`python -m bench.gpu OUT [--dry]`: the steps of bench/gpu/run.sh."""

import sys

if __name__ == "__main__":
    from bench.gpu.command import main

    sys.exit(main(sys.argv[1:]))
