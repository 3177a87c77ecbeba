"""Training: state, step, loop, checkpoints and stages. Nothing here knows a method by name."""
