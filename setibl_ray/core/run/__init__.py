"""A run through time: the driver, the folds that it follows, the folder that it writes, and reading it back."""
