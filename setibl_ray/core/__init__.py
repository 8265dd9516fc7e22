"""The orchestrator: folds, jobs, events, runners, a run through time, sweeps; for any model and any data."""
