"""Statistics of sweeps: pure functions of numbers, seeded where they draw."""
