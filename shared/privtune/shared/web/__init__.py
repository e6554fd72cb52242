"""What pages of both sides share: their look, curves, formats of numbers and times, and headers. Imports no server."""
