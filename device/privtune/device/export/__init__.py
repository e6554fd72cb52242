"""Exports: a tuned model as files for other tools, and on a hub if the owner says so.

export_job     from a finished job to a folder: adapter (PEFT), merged model or GGUF, with card and manifest
trained_parts  the model's parts with the weights that the job trained
export_folder  a folder that appears whole or not at all
merge          an adapter's arithmetic, without peft
base_name      what the export calls its base
model_card     README.md of the folder: facts that reveal nothing about the data
gguf_file      a GGUF file, for llama.cpp and compatible tools
gguf_tokens    a tokenizer as GGUF metadata
push           upload to a hub, only of files that the export wrote
"""
