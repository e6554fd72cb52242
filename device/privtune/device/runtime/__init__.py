"""The process itself: how much memory the libraries may take."""
