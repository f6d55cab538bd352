"""A trial taken out of its sweep: its weights, with a model card."""
