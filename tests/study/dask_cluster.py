"""A sweep on a cluster of two processes, one of which is killed midway; prints "same".

A script, since the cluster's processes import the main module again.
"""

import os
import signal
import warnings

from study_models import by_hand

from tracer.study import sweeps
from tracer.study.engine import Job
from tracer.study.grid import Axis

TASKS_BEFORE = 70  # that were handed out when the worker dies, of 200


def main():
    warnings.simplefilter("ignore")
    import dask
    from distributed import LocalCluster

    dask.config.set({"logging": {"distributed": "error"}})
    step, model = by_hand()
    axes = [Axis("B", range(2, 2002)), Axis("bandwidth", range(10**12, 10**12 + 2000))]
    job = Job(step, model, sweeps.check_axes(step, model, axes), top=5, pareto=True)
    sweeps.TASK = 20_000
    expected, tables = sweeps.run(job)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(processes=True, **options) as cluster:
        address = cluster.scheduler_address.replace("tcp://", "dask://")
        victim = next(iter(cluster.workers.values())).pid
        with sweeps.executor_for(address, job.grid.size) as executor:
            handed, submit = [], executor.submit

            def kills(*args, **kwargs):
                handed.append(args)
                if len(handed) == TASKS_BEFORE:
                    os.kill(victim, signal.SIGKILL)
                return submit(*args, **kwargs)

            executor.submit = kills
            found, theirs = sweeps.run(job, executor=executor)
    assert len(handed) > TASKS_BEFORE
    assert found.points == expected.points == job.grid.size
    assert (found.fastest, found.slowest) == (expected.fastest, expected.slowest)
    assert theirs == tables
    print("same")


if __name__ == "__main__":
    main()
