"""Questions over many points: sweeps, crossovers, elasticities, search."""
