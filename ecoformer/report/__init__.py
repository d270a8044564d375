"""Tables and pictures that set runs beside each other."""
