"""Records of runs: manifests, verification and cleaning."""
