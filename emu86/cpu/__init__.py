"""The engine, which is the real CPU, and the virtual CPU that the guest believes in."""
