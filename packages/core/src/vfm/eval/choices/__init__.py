"""Caption choice with MMVP-VLM, Winoground and SugarCrepe."""
