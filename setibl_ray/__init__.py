"""Ray-distributed cross-validation of EfficientNets for radio-technosignature search."""
