"""Whether a model meets criteria: for continuous integration."""
