"""The run's pictures: report.html and training.png. The only package that plots."""
