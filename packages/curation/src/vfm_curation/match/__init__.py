"""Match texts against metadata."""
