"""Guest RAM, the guest's page tables, and the shadow of them that the engine walks."""
