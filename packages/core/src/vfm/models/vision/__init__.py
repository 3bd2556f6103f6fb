"""Vision encoders of timm, and an interface to the blocks of any vision transformer."""
