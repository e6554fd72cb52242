"""An endpoint of OpenAI's API on the owner's machine: texts stay here, noised vectors go to the cloud."""
