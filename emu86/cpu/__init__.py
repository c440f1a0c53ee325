"""Floors 1 and 2: the real CPU (engine, native) and the one the guest believes in."""
