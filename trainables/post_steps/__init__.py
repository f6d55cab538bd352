"""What can be done to a trained model's weights without more training."""
