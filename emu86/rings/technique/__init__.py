"""The ways to run a guest: by trapping, by patching, and on the bare machine."""
