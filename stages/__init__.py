"""Stages: one file per DVC stage. Each is a verb; the nouns live in `polyweft`."""
