"""Data sets, their split into a half for the weights and a half for the alphas, and loaders of (train, val) pairs."""

from .datasets import DATASETS
from .images import Images, halves, stratified_subset
from .pairs import Pairs, ResidentPairs, StreamedPairs, open_pairs

__all__ = ["DATASETS", "Images", "Pairs", "ResidentPairs", "StreamedPairs", "halves", "open_pairs", "stratified_subset"]
