"""Compare methods on one space: ``sparsemix compare`` as a script.

    python benchmarks/compare.py nb201 --methods darts sp-darts gdas --output runs/compare -- --preset proxy
    python benchmarks/compare.py nb201 --methods darts sp-darts --output runs/cifar10 --dry-run \\
        -- --dataset cifar10 --table nb201.csv                                       # commands for a cluster

Every flag: --help. What is given after -- goes to every search. The same command goes on with what was interrupted.
"""

import sys

from sparsemix.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
