"""The owner's side: text, labels and noise live here and never leave."""
