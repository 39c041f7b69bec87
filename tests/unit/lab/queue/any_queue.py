"""Any queue, cluster and policy, for properties that hold in all of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from asking import NOW, cluster, waits
from hypothesis import strategies as st

from focus_lab.lab.queue.admission import Holding, Usage, Waiting
from focus_lab.lab.queue.capacity import Gang, Resources
from focus_lab.lab.queue.policy import Policy, Quota, Quotas

users, projects = st.sampled_from(["alice", "bob", "carol"]), st.sampled_from(["x", "y"])


@st.composite
def queues(draw: st.DrawFn, least: int = 0, most: int = 10) -> list[Waiting]:
    """Any experiments."""
    return [
        waits(
            f"{number:02d}",
            draw(st.sampled_from([0.1, 0.5, 1.0, 3.0, 8.0])),
            draw(st.sampled_from([0.0, 0.0, 0.1, 0.3, 0.5, 0.6, 1.0, 2.0])),
            workers=draw(st.sampled_from([1, 1, 1, 2, 4])),
            user=draw(users),
            project=draw(projects),
            priority=draw(st.integers(-5, 5)),
            minutes=draw(st.sampled_from([0, 5, 10, 60, 3000])),
            trials=draw(st.integers(1, 20)),
            auto=draw(st.booleans()),
        )
        for number in range(draw(st.integers(least, most)))
    ]


nodes = st.tuples(st.sampled_from([0.0, 1.0, 2.0, 4.0, 16.0]), st.sampled_from([0.0, 1.0, 4.0]))
clusters = st.builds(
    lambda parts, limit: cluster(*parts, limit=limit),
    st.lists(nodes, max_size=4),
    st.none() | st.tuples(st.sampled_from([2.0, 20.0]), st.sampled_from([0.0, 1.5, 8.0])),
)
holdings = st.lists(
    st.builds(
        Holding,
        st.uuids().map(str),
        users,
        projects,
        st.builds(
            Gang,
            st.builds(
                Resources, st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([0.0, 0.3, 1.0])
            ),
            st.integers(1, 3),
        ),
    ),
    max_size=4,
)
hours = st.sampled_from([0.0, 1.0, 9.0, 10.0, 11.0])
usages = st.builds(
    Usage,
    st.dictionaries(users, hours),
    st.dictionaries(projects, hours),
    st.dictionaries(users, hours),
)
quotas = st.builds(
    Quota,
    running=st.none() | st.integers(1, 3),
    gpu_hours=st.none() | st.sampled_from([0.0, 10.0]),
)
policies = st.builds(
    Policy,
    quotas=st.builds(
        Quotas,
        default_user=quotas,
        default_project=quotas,
        users=st.dictionaries(users, quotas, max_size=1),
    ),
    largest_share=st.sampled_from([0.1, 0.5, 1.0]),
    reserve_after_minutes=st.sampled_from([0.0, 10.0, 1e6]),
    share_weight=st.sampled_from([0.0, 10.0]),
)


@st.composite
def long_queues(draw: st.DrawFn) -> list[Waiting]:
    """Many experiments of few kinds."""
    kinds = draw(st.lists(queues(most=1, least=1).map(lambda one: one[0]), min_size=1, max_size=4))
    waiting = draw(
        st.lists(
            st.tuples(
                st.sampled_from(kinds), st.sampled_from([0, 9, 11, 60]), st.sampled_from([1, 1, 3])
            ),
            max_size=40,
        )
    )
    return [
        replace(one, id=f"{number:02d}", queued_at=NOW - timedelta(minutes=minutes), trials=trials)
        for number, (one, minutes, trials) in enumerate(waiting)
    ]
