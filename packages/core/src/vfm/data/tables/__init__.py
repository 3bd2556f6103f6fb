"""Tables and lists of images and captions: csv, jsonl, Parquet, Arrow."""
