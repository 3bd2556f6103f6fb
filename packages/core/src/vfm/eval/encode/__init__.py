"""Encoders, features, caches, hashes and reports that evaluations share."""
