"""Sweeps: a search space over config fields, trials that are whole cross-validations, and their comparison."""
