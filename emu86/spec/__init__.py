"""The architecture: constants and the opcode table, with their SDM sections."""
