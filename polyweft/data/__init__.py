"""Data: from a source on disk to batches of arrays."""
