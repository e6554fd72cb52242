"""The control plane's database and its migrations."""
