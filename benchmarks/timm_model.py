"""Search inside a model of timm's: ``sparsemix search timm`` as a script.

    accelerate launch benchmarks/timm_model.py --preset proxy                             # embedded digits, on a laptop
    accelerate launch benchmarks/timm_model.py --model resnet18 --pretrained --mix kernel --where "layer[34]*" \\
        --dataset folder --data DIR
    accelerate launch benchmarks/timm_model.py --model vit_tiny_patch16_224 --mix token_mixer --where "blocks.*.attn" \\
        --cost macs --cost-budget 800M --dataset folder --data DIR
    accelerate launch benchmarks/timm_model.py --model mobilenetv3_small_100 --mix kernel \\
        --measure-latency --cost-weight 0.1 --dataset cifar10 --image-size 64 --download

Every flag: --help. An interrupted run goes on with --resume.
"""

import sys

from sparsemix.cli import main

if __name__ == "__main__":
    main(["search", "timm", *sys.argv[1:]])
