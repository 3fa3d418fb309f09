"""Search several times and keep the best: ``sparsemix pick`` as a script.

    accelerate launch benchmarks/pick.py --space s2 --dataset cifar10 --selection peers --download    # Zela et al.
    accelerate launch benchmarks/pick.py --space s2 --dataset cifar10 --selection paper --download    # Zhang and Ding
    accelerate launch benchmarks/pick.py --space s2 --preset proxy --selection proxy                  # on a laptop

Every flag: --help. An interrupted run goes on with --resume.
"""

import sys

from sparsemix.cli import main

if __name__ == "__main__":
    main(["pick", *sys.argv[1:]])
