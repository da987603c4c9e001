"""Pipeline schedules as lists of actions a stage."""
