"""Zero-shot classification, probes, neighbours, few-shot classification and a model's own head."""
