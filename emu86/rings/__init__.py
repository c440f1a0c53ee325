"""The heart of the VMM: what traps, what does not, segments, events."""
