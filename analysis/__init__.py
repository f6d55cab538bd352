"""Reads finished records: statistics, what changed inside the model, reports. Never imports Ray."""
