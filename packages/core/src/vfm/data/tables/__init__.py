"""Read tables and lists of images and captions from csv, jsonl, Parquet and Arrow."""
