"""What a model can do, before and after: tasks, forgetting, drift."""
