"""Detection and instance segmentation with a cascade of box heads and a mask head on a dense encoder."""
