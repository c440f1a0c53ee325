"""Floor 4: the heart of the VMM. What traps, what does not, segments, events."""
