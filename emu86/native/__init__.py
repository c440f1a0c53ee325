"""The hot paths that run as machine code, and the words that they share with Python."""
