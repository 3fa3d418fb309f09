"""Train a network from scratch and report its test error: ``sparsemix train`` as a script.

    accelerate launch benchmarks/evaluate.py --genotype runs/NAME/genotype.json --preset proxy    # on a laptop
    accelerate launch benchmarks/evaluate.py --genotype DARTS_V2 --dataset cifar10 --download     # the papers' protocol
    accelerate launch benchmarks/evaluate.py --model densenet121 --dataset cifar10 --download
    accelerate launch benchmarks/evaluate.py --genotype DARTS_V2 --preset imagenet --data TRAIN --test-data VAL

Every flag: --help. An interrupted run goes on with --resume.
"""

import sys

from sparsemix.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
