"""Scripts for another environment's Python: an export in transformers 4 and in llama.cpp. They import no PrivTune."""
