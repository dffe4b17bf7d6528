"""Training, as far as deployment needs it."""
