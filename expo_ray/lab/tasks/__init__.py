"""What the laboratory's models are asked: one record per task, all in `registry`."""
