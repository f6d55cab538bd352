"""Statistics of sweeps: pure functions, seeded if they use randomness."""
