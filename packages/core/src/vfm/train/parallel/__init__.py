"""Train in several processes by DDP or FSDP2, with shared batches and a heartbeat."""
