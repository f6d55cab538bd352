"""One trial: data, model, LoRA or full fine-tuning, evaluation, forgetting.

Knows nothing of the sweep around it: no search, no W&B, and, but for `under_ray`, no Ray.
"""
