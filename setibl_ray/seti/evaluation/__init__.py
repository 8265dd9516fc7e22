"""How good predictions are, and what to do with them: metrics, calibration, blending, probes, baselines."""
