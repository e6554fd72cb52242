"""What an owner takes home: the tuned model as files for other tools, and to a hub if he says so.

job      from a finished job to a folder: adapter (PEFT), merged model or GGUF, with its card and list of files
merge    the adapter's arithmetic, without peft
folder   a folder that appears whole or not at all
card     README.md of the folder: facts that hold nothing of the data
ggufile  a GGUF file, for what llama.cpp and its kin know
push     to a hub, only what the export itself wrote
"""
