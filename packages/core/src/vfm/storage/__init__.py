"""Files, local and remote: reading, publishing, locks, checksums and fingerprints."""
