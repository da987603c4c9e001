"""Plans beside published and measured steps: the rows of docs/plans.md."""
