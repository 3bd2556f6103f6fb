"""What is kept of runs: manifests, records, verification and cleaning."""
