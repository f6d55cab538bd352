"""Which trial comes next, and which ends early."""
