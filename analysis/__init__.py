"""Analysis of finished records: statistics, model internals, reports. Never imports Ray."""
