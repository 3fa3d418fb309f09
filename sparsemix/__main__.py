"""``python -m sparsemix``."""

from .cli import main

main()
