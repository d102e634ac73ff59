"""Polyweft: from raw image, text and audio data to a served, traceable multimodal model."""

__version__ = "0.1.0"
