"""Caption choice and questions about images: `data.choices`."""
