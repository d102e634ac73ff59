"""Flows: the drivers that run the graph of `dvc.yaml`."""
