"""The machine: the board, boot protocols, the loop that runs it, the library."""
