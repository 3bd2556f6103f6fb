"""Vision encoders of timm, and one interface to the blocks of any vision transformer."""
