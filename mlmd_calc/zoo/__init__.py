"""Model store: checkpoints, model cards, shipped weights."""
