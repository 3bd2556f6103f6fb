"""Import and export of other layouts: Hugging Face, EVA, LLaVA, ONNX."""
