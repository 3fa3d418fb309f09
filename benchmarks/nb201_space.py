"""Search the NAS-Bench-201 space: ``sparsemix search nb201`` as a script.

    accelerate launch benchmarks/nb201_space.py --preset proxy                                 # embedded digits
    accelerate launch benchmarks/nb201_space.py --preset fast --dataset cifar10 --download     # what we recommend
    accelerate launch benchmarks/nb201_space.py --preset paper --dataset cifar10 --download    # to the letter
    accelerate launch benchmarks/nb201_space.py --dataset cifar10 --method darts --order second
    accelerate launch benchmarks/nb201_space.py --preset proxy --dataset folder --data DIR \\
        --table nb201.csv --table-dataset cifar10                                     # images from a folder, judged

Every flag: --help. An interrupted run goes on with --resume.
"""

import sys

from sparsemix.cli import main

if __name__ == "__main__":
    main(["search", "nb201", *sys.argv[1:]])
