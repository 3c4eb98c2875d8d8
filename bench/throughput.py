"""`python bench/throughput.py [all|MODE]`: what this machine reaches, as tables and JSON.

Tables go to the standard output, progress to the standard error. Exit status: 0 done, 1 failed,
2 unusable arguments, 130 interrupted; what was measured by then is in the JSON file.
"""

import sys

from bench.arguments import make_parser

if __name__ == "__main__":
    arguments = make_parser().parse_args()
    print("importing torch ...", file=sys.stderr, flush=True)
    from bench.command import main

    sys.exit(main(arguments))
