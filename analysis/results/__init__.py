"""What the records show: the Pareto front, the winner and its repeats, and how to put it."""
