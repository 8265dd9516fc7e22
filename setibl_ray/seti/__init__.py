"""The field: telescope data, TensorFlow models, evaluation and pictures of technosignature search."""
