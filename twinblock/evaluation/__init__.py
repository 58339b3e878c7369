"""Evaluation of frozen features: (features, labels) in, scores of the classes out."""

from twinblock.evaluation.features import at_size, features, pixels, seen_by
from twinblock.evaluation.knn import knn_scores
from twinblock.evaluation.linear import linear_probe

__all__ = ["at_size", "features", "knn_scores", "linear_probe", "pixels", "seen_by"]
