"""Recipes from command lines of other tools: open_clip, timm, CLIP_benchmark, LLaVA."""
