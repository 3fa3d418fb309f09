"""How long a search step takes, as ratios to the dense formulation of the published codes, measured in one run.

python benchmarks/speed.py                    # the table
python benchmarks/speed.py --json speed.json  # and its rows
"""
