"""Import and export the layouts of Hugging Face, EVA, LLaVA and ONNX."""
