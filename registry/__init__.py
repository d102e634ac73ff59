"""Registry: versions, the gate, lineage, and the served model."""
