"""What a teacher adds to the same device, the same public text and the same public labels."""
