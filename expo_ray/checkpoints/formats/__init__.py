"""What the bytes of a weight file say: headers, shard indexes, torch archives, FP8 blocks."""
