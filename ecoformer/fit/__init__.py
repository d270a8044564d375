"""Fitting hash functions and codes: contract, targets, layer fits, the joint fit, and what a fit was worth."""
