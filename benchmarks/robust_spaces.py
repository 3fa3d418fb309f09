"""Search S1, S2, S3 or S4: ``sparsemix search s1`` as a script.

    accelerate launch benchmarks/robust_spaces.py --space s2 --preset proxy                 # embedded digits
    accelerate launch benchmarks/robust_spaces.py --space s3 --dataset cifar100 --download  # the paper's setting

Every flag: --help. An interrupted run goes on with --resume.
"""

import sys

from sparsemix.cli import main

if __name__ == "__main__":
    main(["search", "s1", *sys.argv[1:]])
