"""Classification: zero-shot, probes, neighbours, few-shot and a model's own head."""
