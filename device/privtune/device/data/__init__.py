"""The owner's text: from files to batches of token ids. Nothing in this room leaves the device.

plain_text   UTF-8 to text, and only whole characters
table_files  JSONL, CSV, TSV, Parquet and hub data sets as tables, with the place of every cell
messages     conversations in OpenAI's fine-tuning format
records      tables to records: which columns hold the text and the label
source       a data set as the owner describes it: sampling, held-out part, class numbers
chat         conversations to text by a chat template that is not trusted
prompts      the form in which a language model reads a text
encode       records to token ids
batches      which records make up each micro-batch

Free of torch.
"""
