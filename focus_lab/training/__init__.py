"""One worker's life: optimisation, loop, evaluation, checkpoints. Knows torch, not Ray."""
