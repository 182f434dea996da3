"""Long work in pieces that several processes and machines share over one folder, and that a kill interrupts only."""
