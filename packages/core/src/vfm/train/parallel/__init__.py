"""Several processes: DDP, FSDP2, shared batches and the heartbeat."""
