"""How fast a model is, beside others in turn."""
