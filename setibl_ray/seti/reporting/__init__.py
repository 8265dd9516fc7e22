"""A run's figures and pictures: report.html and training.png."""
