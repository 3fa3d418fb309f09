"""Data sets, their split into a half for the weights and a half for the alphas, and loaders of (train, val) pairs."""

from .datasets import DATASETS
from .images import Images, halves, stratified_subset
from .pairs import Pairs, ResidentPairs, StreamedPairs, open_pairs
from .training import ResidentTraining, StreamedTraining, TrainingData, open_training

__all__ = [
    "DATASETS",
    "Images",
    "Pairs",
    "ResidentPairs",
    "ResidentTraining",
    "StreamedPairs",
    "StreamedTraining",
    "TrainingData",
    "halves",
    "open_pairs",
    "open_training",
    "stratified_subset",
]
