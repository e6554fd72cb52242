"""An endpoint in OpenAI's shape on the owner's own machine: texts stay here, noised rows go to the cloud."""
