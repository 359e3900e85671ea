"""What the tasks train with: losses, optimiser, metrics, re-ranking, sharding."""
