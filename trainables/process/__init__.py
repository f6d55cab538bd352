"""The memory, device and life of the process that a trial runs in."""
