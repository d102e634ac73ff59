"""Training speed, measured against open_clip in the same run: `python -m bench.training`."""
