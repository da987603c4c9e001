"""From one chip to many: plans, networks, pipeline schedules, expert placement."""
