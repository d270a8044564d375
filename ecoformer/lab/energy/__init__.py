"""Tables and pictures of the ledger over many models and settings."""
