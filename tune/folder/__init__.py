"""A sweep's folder: who may write there, and what is written."""
