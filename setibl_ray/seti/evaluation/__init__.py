"""What predictions are worth and what can be made of them: metrics, calibration, blending, probes, baselines."""
