"""How a model is run on one machine: what could be set, the search, and the file that keeps it."""
