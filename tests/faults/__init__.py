"""What may go wrong while the service runs: load, leaks, signals, disks, memory, clocks. `make test-faults` runs it."""
