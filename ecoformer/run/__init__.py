"""One run: from config to objects, its directory, its launch, its summary."""
