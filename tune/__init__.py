"""The sweep: configuration, search, records, W&B, console. Never imports torch."""
