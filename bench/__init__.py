"""What emu86 costs, measured: `python -m bench` from the top of the project."""
