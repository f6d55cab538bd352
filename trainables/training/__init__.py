"""One training from start to end: LoRA and full fine-tuning, reports, checkpoints."""
