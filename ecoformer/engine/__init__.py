"""The engine room: training loop, evaluation, checkpoints, logs. It knows no kind of attention."""
