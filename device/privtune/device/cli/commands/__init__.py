"""The commands of `privtune`, one module each."""
