"""Build CLIP models by open_clip, and save them in folders that open_clip loads."""
