"""Constants of the architecture, with their SDM sections."""
