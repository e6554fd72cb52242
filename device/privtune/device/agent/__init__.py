"""The agent: waits for jobs that name its data sets and runs those that its policy allows."""
