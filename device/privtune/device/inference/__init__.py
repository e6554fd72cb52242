"""Using a tuned model through the same private path: predict, evaluate, generate."""
