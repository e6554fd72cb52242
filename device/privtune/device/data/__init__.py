"""The owner's text: files to records to token ids. Nothing in this room leaves the device."""
