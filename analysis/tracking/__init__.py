"""W&B from the side of the analysis: views and tables there, and runs read back from there."""
