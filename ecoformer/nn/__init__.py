"""What every attention has: its contract, softmax attention, and readers of stock layers."""
