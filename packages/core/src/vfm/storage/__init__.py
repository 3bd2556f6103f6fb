"""Read, publish, lock and verify local and remote files."""
