"""Search the DARTS space: ``sparsemix search darts`` as a script.

    accelerate launch benchmarks/darts_space.py --preset proxy                                 # embedded digits
    accelerate launch benchmarks/darts_space.py --preset fast --dataset cifar10 --download     # what we recommend
    accelerate launch benchmarks/darts_space.py --preset paper --dataset cifar10 --download    # to the letter
    accelerate launch benchmarks/darts_space.py --dataset cifar10 --method darts

At the end the search prints the command that trains what it found from scratch.

Every flag: --help. An interrupted run goes on with --resume.
"""

import sys

from sparsemix.cli import main

if __name__ == "__main__":
    main(["search", "darts", *sys.argv[1:]])
