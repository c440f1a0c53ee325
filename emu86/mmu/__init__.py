"""Floor 3: guest RAM, the guest's page tables, and the shadow of them the CPU walks."""
