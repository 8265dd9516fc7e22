"""Technosignature search: telescope data, TensorFlow models, evaluation and pictures."""
