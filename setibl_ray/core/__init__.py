"""The orchestrator, for any model and any data: folds, jobs, events, runners, runs from start to end, sweeps."""
