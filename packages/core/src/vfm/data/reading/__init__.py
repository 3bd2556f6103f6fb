"""Read bytes of local and remote shards, ahead and from a cache."""
