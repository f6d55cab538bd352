"""What trials leave behind, and what it shows: a sweep's records, Pareto front and winner."""
