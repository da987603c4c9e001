"""Closed forms: integers that may hold named symbols, and what is done with them."""
