"""Models: one file per modality encoder, and the families that join them."""
