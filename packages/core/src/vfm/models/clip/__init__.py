"""CLIP models: built by open_clip, and saved in folders that open_clip loads."""
