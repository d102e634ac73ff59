"""Losses over a global batch that several processes hold in parts, and what they are compared with."""
