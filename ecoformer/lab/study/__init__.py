"""Studies: tables of many runs, made by train.py, resumed, gathered and drawn. See docs/studies.md."""
