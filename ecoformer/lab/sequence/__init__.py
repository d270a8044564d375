"""When each attention pays: cost of a transformer encoder against the number of tokens. See docs/sequence_study.md."""
