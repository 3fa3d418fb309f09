"""How long a search step takes, as ratios within one run: ``sparsemix speed`` as a script.

    python benchmarks/speed.py                            # the table, and a whole schedule at the end
    python benchmarks/speed.py --json speed.json          # and its rows
    python benchmarks/speed.py --only "N 1|one candidate" # some of the comparisons

Let nothing else run beside it. Every flag: --help.
"""

import sys

from sparsemix.cli import main

if __name__ == "__main__":
    main(["speed", *sys.argv[1:]])
