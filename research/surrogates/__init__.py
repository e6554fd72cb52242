"""What surrogates miss, spoil, restore wrongly, reveal and cost."""
