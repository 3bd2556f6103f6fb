"""Caption choice: MMVP-VLM, Winoground, SugarCrepe."""
