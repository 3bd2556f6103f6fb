"""Detection and instance segmentation: a cascade of box heads and a mask head on a dense encoder."""
