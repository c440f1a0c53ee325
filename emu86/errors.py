"""What emu86 says when its user, not its guest, is mistaken."""


class ConfigError(ValueError):
    """The machine cannot be built or loaded as asked.

    Its text is one clear line that names what is at fault ("kernel: ...",
    "memory: ..."). What a *guest* does wrong never raises: it becomes the guest's
    own fault.
    """
