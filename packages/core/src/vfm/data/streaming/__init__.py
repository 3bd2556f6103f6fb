"""Whole tars read in their order as they arrive, without an index of their samples."""
