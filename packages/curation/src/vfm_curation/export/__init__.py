"""A curated subset in the formats of other tools."""
