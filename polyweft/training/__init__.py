"""Training: the loop, its losses, its optimiser, its checkpoints."""
