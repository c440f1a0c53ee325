"""Floor 0: constants of the architecture, each with its SDM section. Imports nothing."""
