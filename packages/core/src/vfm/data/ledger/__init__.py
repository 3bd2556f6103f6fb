"""The ledger of a dataset: where every byte, line, row or entry of its files went."""
