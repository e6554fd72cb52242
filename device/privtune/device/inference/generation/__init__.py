"""Writing text with a tuned model: rows drawn once, tokens chosen here, many answers over one stream."""
