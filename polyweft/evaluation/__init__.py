"""Evaluation: metrics as the literature defines them, with intervals."""
