"""What a budget costs: fidelity of a bounded cache against the full one."""
