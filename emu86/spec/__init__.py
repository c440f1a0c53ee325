"""Floor 0: constants of the architecture, with their SDM sections."""
