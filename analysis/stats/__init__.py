"""Statistics of sweeps: pure functions of numbers, seeded if they use randomness."""
