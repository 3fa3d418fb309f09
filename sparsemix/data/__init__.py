"""Data sets, their split into images for the weights and images for the alphas, and loaders of (train, val) pairs."""

from .benchmark import benchmark_split
from .datasets import DATASETS
from .images import Images, halves, stratified_subset
from .pairs import Pairs, ResidentPairs, Sampling, Split, StreamedPairs, open_pairs
from .training import ResidentTraining, StreamedTraining, TrainingData, open_training

__all__ = [
    "DATASETS",
    "Images",
    "Pairs",
    "ResidentPairs",
    "ResidentTraining",
    "Sampling",
    "Split",
    "StreamedPairs",
    "StreamedTraining",
    "TrainingData",
    "benchmark_split",
    "halves",
    "open_pairs",
    "open_training",
    "stratified_subset",
]
