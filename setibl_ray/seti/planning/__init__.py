"""What a run will take, before it runs: rates measured or assumed, a simulated schedule, memory, cost."""
