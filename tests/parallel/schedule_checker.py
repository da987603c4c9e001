"""An independent reading of schedules: what must run, what waits for what, how long it takes.

Nothing here uses the compiled graph of the package; it looks at the lists of actions alone.
"""

from collections import Counter
from itertools import pairwise

import networkx


def parts_of(action):
    """[(kind, stage, micro-batch)], with an overlapped slot taken apart."""
    if action.kind == "F&B":
        return [("F", action.stage, action.microbatch), ("B", *action.backward)]
    return [(action.kind, action.stage, action.microbatch)]


def needs(part, stages):
    """What must have ended before `part` starts, as alternatives: [(one or the other), ...]."""
    kind, stage, microbatch = part
    if kind == "F":
        return [[("F", stage - 1, microbatch)]] if stage else []
    if kind == "W":
        return [[("I", stage, microbatch)]]
    wanted = [[("F", stage, microbatch)]]
    if stage < stages - 1:
        wanted.append([("B", stage + 1, microbatch), ("I", stage + 1, microbatch)])
    return wanted


def check_by_hand(schedule):
    """Every part once; a round-robin that runs whatever has its needs met gets to the end."""
    count = Counter(part for mine in schedule.actions for a in mine for part in parts_of(a))
    expected = set()
    for stage in range(schedule.stages):
        for microbatch in range(schedule.microbatches):
            key = (stage, microbatch)
            whole = ("B", *key) in count
            expected |= {("F", *key)} | {(k, *key) for k in ("B" if whole else "IW")}
    assert set(count) == expected
    assert set(count.values()) == {1}
    for held, mine in zip(schedule.stages_of_rank, schedule.actions, strict=True):
        assert {stage for a in mine for _, stage, _ in parts_of(a)} <= set(held)
        assert all(a.kind in ("F", "B", "I", "W", "F&B") for a in mine)

    done, at = set(), [0] * schedule.ranks
    moved = True
    while moved:
        moved = False
        for rank, mine in enumerate(schedule.actions):
            while at[rank] < len(mine):
                parts = parts_of(mine[at[rank]])
                wanted = [n for part in parts for n in needs(part, schedule.stages)]
                if not all(done.intersection(choice) for choice in wanted):
                    break
                done.update(parts)
                at[rank] += 1
                moved = True
    assert at == [len(mine) for mine in schedule.actions], "deadlock"


def seconds_of(action, durations):
    by_kind = {
        "F": durations.forward, "B": durations.backward,
        "I": durations.input_gradient, "W": durations.weight_gradient,
    }  # fmt: skip
    if action.kind != "F&B":
        return by_kind[action.kind][action.stage]
    if durations.overlapped is None:
        return durations.forward[action.stage] + durations.backward[action.backward[0]]
    return durations.overlapped[action.stage, action.backward[0]]


def critical_path(schedule, durations):
    """Seconds of the longest path through everything that waits for something, by networkx."""
    graph = networkx.DiGraph()
    where, rank_of = {}, {}
    for rank, mine in enumerate(schedule.actions):
        for i, action in enumerate(mine):
            rank_of[rank, i] = rank
            for part in parts_of(action):
                where[part] = (rank, i)
    sent = Counter()  # seconds that the sender spends on sending, by slot
    edges = []
    for rank, mine in enumerate(schedule.actions):
        for i, action in enumerate(mine):
            if i:
                edges.append(((rank, i - 1), (rank, i), 0.0))
            for part in parts_of(action):
                for choice in needs(part, schedule.stages):
                    (source,) = {where[one] for one in choice if one in where}
                    lag = 0.0
                    if rank_of[source] != rank:
                        hop = part[1] - 1 if part[0] == "F" else part[1]
                        table = (
                            durations.transfer if part[0] == "F" else durations.gradient_transfer
                        )
                        lag = table[hop]
                    if durations.blocking:
                        sent[source] += lag
                        lag = 0.0
                    edges.append((source, (rank, i), lag))
    for source, target, lag in edges:
        rank, i = source
        seconds = seconds_of(schedule.actions[rank][i], durations) + sent[source]
        old = graph.get_edge_data(source, target, {"weight": -1.0})["weight"]
        graph.add_edge(source, target, weight=max(old, seconds + lag))
    for rank, mine in enumerate(schedule.actions):
        last = (rank, len(mine) - 1)
        graph.add_edge(last, "end", weight=seconds_of(mine[-1], durations) + sent[last])
    return networkx.dag_longest_path_length(graph)


def check_timeline(timeline):
    """No rank runs two slots at once, and no slot starts before what it needs has arrived."""
    schedule, durations = timeline.schedule, timeline.durations
    free, rank_of = {}, {}
    slots = [list(timeline.of_rank(rank)) for rank in range(schedule.ranks)]
    close = 1e-9 * timeline.step.seconds
    for rank, mine in enumerate(slots):
        assert [slot.action for slot in mine] == list(schedule.actions[rank])
        for slot in mine:
            assert slot.start >= 0
            took = slot.end - slot.start
            assert abs(took - seconds_of(slot.action, durations)) <= close
            for part in parts_of(slot.action):
                free[part], rank_of[part] = slot.free, rank
        for before, after in pairwise(mine):
            assert after.start >= before.free - close
    for rank, mine in enumerate(slots):
        for slot in mine:
            for part in parts_of(slot.action):
                for choice in needs(part, schedule.stages):
                    (source,) = [one for one in choice if one in free]
                    lag = 0.0
                    if rank_of[source] != rank and not durations.blocking:
                        forward = part[0] == "F"
                        table = durations.transfer if forward else durations.gradient_transfer
                        lag = table[part[1] - 1 if forward else part[1]]
                    assert slot.start >= free[source] + lag - close
