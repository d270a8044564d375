"""Experiments on the framework itself. Nothing but the command line imports it."""
