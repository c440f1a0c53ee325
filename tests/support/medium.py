"""A medium of bytes for a chip's drive."""


class Medium:
    """It counts flushes, and fails with `fails`, an error number, while that is set."""

    def __init__(self, data, *, read_only=False):
        self.data = bytearray(data)
        self.size = len(self.data)
        self.read_only = read_only
        self.flushed = 0
        self.fails = None

    def fail(self):
        if self.fails:
            raise OSError(self.fails, "it fails")

    def read(self, offset, size):
        self.fail()
        assert 0 <= offset <= self.size - size
        return bytes(self.data[offset : offset + size])

    def write(self, offset, data):
        self.fail()
        assert 0 <= offset <= self.size - len(data)
        self.data[offset : offset + len(data)] = data

    def flush(self):
        self.fail()
        self.flushed += 1
