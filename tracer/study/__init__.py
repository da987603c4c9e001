"""Questions over many points: sweeps, crossovers, elasticities, search.

structure   a model's closed form, traced once and cached      closed     what that is
grid        axes and blocks of points                          sweeps     through any executor
crossovers  where one side overtakes another, with the proof   exploration  decode over EP and L
elasticities  d ln T / d ln knob and where it ends             ranking    full grids, by knob
records     the answers
"""
