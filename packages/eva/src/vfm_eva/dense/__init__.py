"""What dense tasks share: encoders for pictures of any size, and augmentation of pictures with boxes and masks."""
