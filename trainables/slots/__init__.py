"""Many LoRA trials on one frozen base, trained in the same forward and backward passes."""
