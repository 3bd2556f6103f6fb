"""Action recognition with an image encoder and attention over space and time (`eva.video`)."""
