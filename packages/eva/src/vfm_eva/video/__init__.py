"""Action recognition: an image encoder on the frames of a clip, with attention over space and time (`eva.video`)."""
