"""Convert command lines of open_clip, timm, CLIP_benchmark and LLaVA to recipes."""
