"""The ledger of a dataset, which records the use of every byte, line, row or entry of its files."""
