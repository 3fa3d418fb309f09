"""Run a script of timm's repository (validate.py, benchmark.py, ...) with the models of this library registered.

    python benchmarks/with_timm.py validate.py DATA --model sparsemix_darts_cifar --model-kwargs genotype=DARTS_V2

timm's train.py needs no launcher: --device-modules sparsemix.models registers them.
"""

import runpy
import sys

import sparsemix.models  # noqa: F401  (registers the models)

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} SCRIPT [ARGUMENT ...]")
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
