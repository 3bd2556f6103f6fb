"""What evaluations share: encoders, features, caches, hashes and reports."""
