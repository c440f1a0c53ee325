"""An observer for tests."""


class Recorder:
    """An observer that writes down all that it is told."""

    def __init__(self):
        self.exits, self.events, self.fills, self.ports = [], [], [], []

    def vm_exit(self, reason, cs, eip):
        self.exits.append((reason, cs, eip))

    def inject(self, vector, error):
        self.events.append((vector, error))

    def shadow_fill(self, gva):
        self.fills.append(gva)

    def pio(self, port, width, value, write):
        self.ports.append((port, width, value, write))
