"""What a trial is given: the base model and the training data."""
