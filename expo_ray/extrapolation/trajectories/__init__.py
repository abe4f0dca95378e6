"""Many checkpoints of one training: fits through them, and how far a fit may be trusted."""
