"""Events on their way to the guest: exceptions, interrupts, breakpoints, steps."""
