"""EcoFormer's attention on tensors, one file a form, and the fit of its hash functions."""
