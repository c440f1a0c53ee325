"""The instructions that the VMM handles: one record each, and what emulates them."""
