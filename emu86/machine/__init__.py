"""Floor 6: the board, the clock and the run."""
