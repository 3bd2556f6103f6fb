"""Bytes of shards: local or remote, read ahead and cached."""
