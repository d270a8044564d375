"""Attention on 0/1 codes and its fits."""
