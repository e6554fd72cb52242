"""The control plane over HTTP: OpenAI-style fine-tuning routes. The only room that imports FastAPI."""
