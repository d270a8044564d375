"""The typed schema of every run, and how YAML becomes it."""
