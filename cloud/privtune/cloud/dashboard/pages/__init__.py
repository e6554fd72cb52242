"""The pages, a file for each subject. Each asks REST and fills a template."""
