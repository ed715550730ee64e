"""Links: max-min fair shares, processor sharing, bytes that neither vanish nor hurry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.fair_share import max_min_rates
from simcluster.engine.clock import ARRIVAL, At, Clock
from simcluster.engine.links import link as link_module
from simcluster.engine.links.link import Link, LinkNetwork, Path
from simcluster.engine.recorder import Recorder, transfer_columns
from simcluster.rng import stream
from simcluster.testing.examples import examples
from simcluster.testing.laws import union_of
from simcluster.units import TICK_S, FloatArray, grid_array, on_grid

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Transfer:
    """One transfer to make: when (s), along which links, how many bytes."""

    at_s: float
    path: Path
    num_bytes: int


def start(transfers: list[Transfer], told: Callable[[float, int], None]) -> Recorder:
    """Send all of them through one network; `told` hears when each ends, and which it is."""
    env, recorder = Clock(), Recorder()
    network = LinkNetwork(env, recorder)

    def begin(number: int, transfer: Transfer) -> None:
        def ended() -> None:
            told(env.now, number)

        network.transfer(number, transfer.path, transfer.num_bytes, ended)

    for number, transfer in enumerate(transfers):
        event = At(env, on_grid(transfer.at_s), ARRIVAL)
        assert event.callbacks is not None
        event.callbacks.append(lambda _, k=number, t=transfer: begin(k, t))  # type: ignore[misc]
    env.run()
    return recorder


def send(transfers: list[Transfer]) -> Columns:
    """Send all of them through one network; the transfers frame, by number of the transfer."""
    ended: list[int] = []
    columns = transfer_columns(start(transfers, lambda _, number: ended.append(number)).transfers)
    assert ended == columns["request_id"].tolist(), "told in the order in which they end"
    assert sorted(ended) == list(range(len(transfers)))
    order = np.argsort(columns["request_id"])
    return {name: column[order] for name, column in columns.items()}


# --- one link ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
def test_equal_flows_on_one_link_take_as_many_times_as_long(count: int) -> None:
    """Together they take what they would take one after the other."""
    link = Link("shared", 1e9, 0.0)
    frame = send([Transfer(1.0, (link,), 10**9) for _ in range(count)])
    assert len(set(frame["end_s"])) == 1
    assert 0 <= frame["end_s"][0] - (1.0 + count) <= TICK_S
    assert link.num_bytes == count * 10**9


def test_a_latecomer_halves_the_rate() -> None:
    """10 s of bytes each, 5 s apart: the first ends at 15 s, the second at 20 s."""
    link = Link("shared", 1e6, 0.0)
    frame = send([Transfer(0.0, (link,), 10**7), Transfer(5.0, (link,), 10**7)])
    assert frame["end_s"].tolist() == [15.0, 20.0]


def test_latencies_of_the_path_pass_before_the_first_byte() -> None:
    """Their sum, put on the grid once; meanwhile the flow takes no bandwidth."""
    slow, fast = Link("slow", 1e6, 0.3), Link("fast", 1e9, 0.1)
    frame = send([Transfer(1.0, (slow, fast), 10**6), Transfer(1.0, (Link("x", 1e6, 0.0),), 1)])
    assert frame["requested_s"].tolist() == [1.0, 1.0]
    start_s = 1.0 + on_grid(0.3 + 0.1)
    assert frame["start_s"][0] == start_s
    assert 0 <= frame["end_s"][0] - (start_s + 1.0) <= TICK_S
    assert frame["path"].tolist() == ["slow > fast", "x"]
    assert frame["wait_s"].tolist() == [on_grid(0.3 + 0.1), 0.0]


def test_flows_that_tie_end_together_in_the_order_of_their_start() -> None:
    """Also across links and sizes: what ends at the same time is told in order of start."""
    one, other = Link("one", 1e6, 0.0), Link("other", 2e6, 0.0)
    transfers = [
        Transfer(0.0, (other,), 2 * 10**6),
        Transfer(0.0, (one,), 10**6),
        Transfer(0.25, (Link("third", 1e6, 0.0),), 750_000),
        Transfer(0.0, (Link("fourth", 4e6, 0.0),), 4 * 10**6),
    ]
    ended: list[tuple[float, int]] = []
    start(transfers, lambda now, number: ended.append((now, number)))
    assert ended == [(1.0, 0), (1.0, 1), (1.0, 3), (1.0, 2)]


SIZES: dict[str, Callable[[np.random.Generator, int], FloatArray]] = {
    "exponential": lambda rng, n: rng.exponential(1.0, n),
    "constant": lambda _, n: np.ones(n),
    "two sizes": lambda rng, n: np.where(rng.random(n) < 0.9, 0.5, 5.5),
}


@pytest.mark.parametrize("sizes", sorted(SIZES))
def test_one_shared_link_is_processor_sharing(sizes: str) -> None:
    """M/G/1-PS: a transfer of x seconds takes x / (1 - rho) on average, whatever the sizes.

    (Kleinrock, Queueing Systems II, section 4.4.) First come, first served would make two sizes
    wait three times as long as constant ones.
    """
    rho, num_flows, bandwidth = 0.5, 2000, 1e9
    delays, short = [], []
    for seed in range(20):
        rng = stream(seed, "test", "links")
        arrivals = grid_array(np.cumsum(rng.exponential(1 / rho, num_flows)))
        seconds = SIZES[sizes](rng, num_flows)
        path = (Link("shared", bandwidth, 0.0),)
        frame = send(
            [
                Transfer(at_s, path, round(size * bandwidth))
                for at_s, size in zip(arrivals.tolist(), seconds.tolist(), strict=True)
            ]
        )
        delay = frame["end_s"] - frame["requested_s"]
        delays.append(float(delay.mean()))
        small = seconds <= 0.5
        if small.any():
            short.append(float(delay[small].mean() / seconds[small].mean()))
    assert_mean_is(delays, 1 / (1 - rho))
    if short:
        assert_mean_is(short, 1 / (1 - rho))


def assert_mean_is(samples: list[float], expected: float) -> None:
    """The mean over seeds is the expected one, within four standard errors."""
    half_width = 4 * np.std(samples, ddof=1) / math.sqrt(len(samples))
    assert half_width < 0.15 * expected, "too noisy to say anything"
    assert abs(np.mean(samples) - expected) < half_width


# --- several links -------------------------------------------------------------------------------


def test_the_long_flow_of_a_parking_lot_gets_the_least_share() -> None:
    """Three links of 1, 2, 3 in a row, one flow over all and one on each: 1/2; 1/2, 3/2, 5/2."""
    routes = [((0, 1, 2), 1), ((0,), 1), ((1,), 1), ((2,), 1)]
    assert max_min_rates([1.0, 2.0, 3.0], routes) == [0.5, 0.5, 1.5, 2.5]


def test_max_min_shares_of_three_links_by_hand() -> None:
    """Filling by hand, in the manner of Bertsekas and Gallager, section 6.5.2.

    Link A (1) carries flows 1, 2, 3; link B (1) flows 3, 4; link C (2) flows 4, 5, 6. All rise
    together until A is full at 1/3: 1, 2, 3 stop. Then 4 rises with 5 and 6 until B is full at
    2/3: 4 stops. C has 4/3 left for 5 and 6, who reach 2/3 at that very moment.
    """
    a, b, c = range(3)
    routes = [((a,), 1), ((a,), 1), ((a, b), 1), ((b, c), 1), ((c,), 2)]
    rates = max_min_rates([1.0, 1.0, 2.0], routes)
    assert rates == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3])


NETWORKS = st.lists(
    st.tuples(st.sets(st.integers(0, 4), min_size=1, max_size=3), st.integers(1, 5)),
    min_size=1,
    max_size=8,
)
BANDWIDTHS = st.lists(st.sampled_from([1.0, 2.0, 3.0, 7.0, 1e9]), min_size=5, max_size=5)


@examples(300)
@given(network=NETWORKS, bandwidths=BANDWIDTHS)
def test_every_flow_has_a_bottleneck(
    network: list[tuple[set[int], int]], bandwidths: list[float]
) -> None:
    """Max-min fair, and only then: each flow crosses a full link on which nobody is faster."""
    rates = max_min_rates(bandwidths, network)
    assert min(rates) > 0
    carried = [0.0] * len(bandwidths)
    fastest = [0.0] * len(bandwidths)
    for (path, count), rate in zip(network, rates, strict=True):
        for link in path:
            carried[link] += rate * count
            fastest[link] = max(fastest[link], rate)
    for used, bandwidth in zip(carried, bandwidths, strict=True):
        assert used <= bandwidth * (1 + 1e-12)
    for (path, _), rate in zip(network, rates, strict=True):
        assert any(
            carried[link] >= bandwidths[link] * (1 - 1e-12) and rate >= fastest[link] * (1 - 1e-12)
            for link in path
        )


TRANSFERS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.125, 0.5, 1.0]),
        st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
        st.sampled_from([0, 1, 10**5, 10**6, 3 * 10**6]),
    ),
    min_size=1,
    max_size=20,
)


@pytest.mark.parametrize("few", [0, 24], ids=["coupled routes", "all routes"])
@settings(
    examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    transfers=TRANSFERS,
    bandwidths=st.lists(st.sampled_from([1e6, 1e6, 2e6, 3e6, 7e6]), min_size=6, max_size=6),
    latencies=st.lists(st.sampled_from([0.0, 0.0, 0.0625]), min_size=6, max_size=6),
    wires=st.lists(st.integers(0, 5), max_size=3, unique=True),
    asked=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.125, 0.5, 1.0, 2.0]),
            st.integers(0, 2),
            st.sampled_from([0.0, 1e5, 1e6, 2.5e6, 8e6]),
        ),
        max_size=10,
    ),
)
def test_rates_are_those_of_the_plain_solution_bit_for_bit(
    few: int,
    monkeypatch: pytest.MonkeyPatch,
    transfers: list[tuple[float, list[int], int]],
    bandwidths: list[float],
    latencies: list[float],
    wires: list[int],
    asked: list[tuple[float, int, float]],
) -> None:
    """After every event, sharing anew what an event touched = sharing all links anew.

    Some links never decide a rate, some flows are alone and start without an event of their own,
    and lose that status when another route appears, collectives ask for more or less: the rates do
    not show it. Whoever watches a link knows what its flows leave.
    """
    monkeypatch.setattr(link_module, "_FEW_ROUTES", few)
    monkeypatch.setattr(link_module, "_FEW_LINKS", few)
    env, recorder = Clock(), Recorder()
    network = LinkNetwork(env, recorder)
    links = [Link(str(k), b, s) for k, (b, s) in enumerate(zip(bandwidths, latencies, strict=True))]
    heard: dict[int, float] = {}
    for k in wires:
        links[k].carry_collectives()
        network.watch(
            (links[k],),
            lambda k=k: heard.update({k: links[k].left_for_collectives}),  # type: ignore[misc]
        )
    demands: dict[int, float] = {}

    def ask(k: int, demand: float) -> None:
        demands[k] = demand
        network.demand((links[k],), demand)

    for at_s, place, demand in asked if wires else ():
        wire = wires[place % len(wires)]
        event = At(env, at_s, ARRIVAL)
        assert event.callbacks is not None
        event.callbacks.append(
            lambda _, k=wire, d=demand: ask(k, d)  # type: ignore[misc]
        )
    ended: list[int] = []
    at_s = 0.0
    for number, (gap_s, path, num_bytes) in enumerate(transfers):
        at_s += gap_s
        event = At(env, at_s, ARRIVAL)
        assert event.callbacks is not None
        event.callbacks.append(
            lambda _, k=number, p=path, n=num_bytes: network.transfer(  # type: ignore[misc]
                k, tuple(links[i] for i in p), n, lambda: ended.append(k)
            )
        )
    while env.peek() < math.inf:
        env.step()
        rates = network.rates
        routes = [([int(link.name) for link in path], flows) for path, (_, flows) in rates.items()]
        assert [rate for rate, _ in rates.values()] == max_min_rates(bandwidths, routes, demands)
        for k, left in heard.items():
            assert left == links[k].left_for_collectives
    frame = recorder.transfers.columns()
    assert ended == frame["request_id"].tolist()
    assert sorted(ended) == list(range(len(transfers)))
    for number, start_s, requested_s in zip(
        ended, frame["start_s"], frame["requested_s"], strict=True
    ):
        assert start_s - requested_s == sum(latencies[k] for k in transfers[number][1])


def test_a_flow_alone_on_its_links_makes_one_event() -> None:
    """Nothing can happen between its request and its start, so nothing needs to look then."""
    events = []
    for others in (0, 1):
        env = Clock()
        network = LinkNetwork(env, Recorder())
        link = Link("link", 1e6, 0.25)
        for k in range(others):
            network.transfer(k, (link, Link("far", 1e6, 0.0)), 0, lambda: None)
            env.run()
        before = env.num_events
        network.transfer(9, (link,), 10**6, lambda: None)
        env.run()
        events.append(env.num_events - before)
        assert env.now == 1.25 + 0.25 * others
    assert events == [1, 2]


def test_a_flow_that_was_alone_takes_no_share_before_it_starts() -> None:
    """A second route appears and is done while the latency of the first still passes."""
    link, slow = Link("link", 1e6, 0.0), Link("slow", 1e6, 0.5)
    frame = send(
        [Transfer(0.0, (link, slow), 10**6), Transfer(0.0, (link,), 250_000)],
    )
    assert frame["start_s"].tolist() == [0.5, 0.0]
    assert frame["end_s"].tolist() == [1.5, 0.25]


def fluid_ends(transfers: list[Transfer]) -> FloatArray:
    """When each transfer ends if every flow is tracked by itself; latencies are zero.

    Rates by raising all of them together; from event to event in small words.
    """
    left = {k: float(t.num_bytes) for k, t in enumerate(transfers)}
    ends = np.full(len(transfers), math.nan)
    now = 0.0
    while left:
        active = [k for k in left if transfers[k].at_s <= now]
        coming = [transfers[k].at_s for k in left if transfers[k].at_s > now]
        rates = raised_together([transfers[k].path for k in active])
        finish = [now + left[k] / rate for k, rate in zip(active, rates, strict=True)]
        until = min([*finish, *coming])
        for k, rate, end in zip(active, rates, finish, strict=True):
            left[k] -= rate * (until - now)
            if end <= until:
                ends[k] = until
                del left[k]
        now = until
    return ends


def raised_together(paths: list[Path]) -> list[float]:
    """Rates of flows on `paths`: all rise at the same speed, those on a full link stop."""
    rates = [0.0] * len(paths)
    rising = set(range(len(paths)))
    while rising:
        lifts = {}
        for link in {link for k in rising for link in paths[k]}:
            crossing = [k for k, path in enumerate(paths) if link in path]
            room = link.bandwidth - sum(rates[k] for k in crossing)
            lifts[link] = room / sum(k in rising for k in crossing)
        lift = min(lifts.values())
        for k in rising:
            rates[k] += lift
        full = {link for link, most in lifts.items() if most <= lift * (1 + 1e-9)}
        rising -= {k for k in rising if full & set(paths[k])}
    return rates


@examples(200)
@given(
    data=st.data(),
    bandwidths=st.lists(st.sampled_from([1e6, 2e6, 5e6]), min_size=3, max_size=3),
    count=st.integers(1, 14),
)
def test_flows_that_share_a_counter_end_like_flows_tracked_one_by_one(
    data: st.DataObject, bandwidths: list[float], count: int
) -> None:
    """Random transfers over three links, with ties: each ends when the slow program says."""
    links = [Link(str(k), bandwidth, 0.0) for k, bandwidth in enumerate(bandwidths)]
    transfers = []
    for _ in range(count):
        path = data.draw(st.sets(st.sampled_from([0, 1, 2]), min_size=1))
        at_s = data.draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.25, 3.0, 20.0]))
        num_bytes = data.draw(st.sampled_from([1, 10**5, 10**6, 3 * 10**6, 10**7]))
        transfers.append(Transfer(at_s, tuple(links[k] for k in sorted(path)), num_bytes))
    frame = send(transfers)
    assert frame["end_s"] == pytest.approx(fluid_ends(transfers), abs=1e-7)
    for link in links:
        through = np.array([link in t.path for t in transfers], bool)
        assert link.num_bytes == frame["num_bytes"][through].sum()
        busy = union_of(frame["start_s"][through], frame["end_s"][through])
        most = link.bandwidth * ((busy[:, 1] - busy[:, 0]).sum() + 1e-6)
        assert link.num_bytes <= most, "more bytes than the link carries"


@examples(100)
@given(
    arrivals=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=30),
    seed=st.integers(0, 10**6),
)
def test_a_link_with_flows_is_never_idle(arrivals: list[float], seed: int) -> None:
    """Each busy period lasts exactly as long as its bytes take, to a tick per flow."""
    link = Link("shared", 1e6, 0.0)
    sizes = np.random.default_rng(seed).integers(1, 3_000_000, len(arrivals)).tolist()
    frame = send(
        [Transfer(at_s, (link,), n) for at_s, n in zip(sorted(arrivals), sizes, strict=True)]
    )
    for start_s, end_s in union_of(frame["start_s"], frame["end_s"]):
        inside = (frame["start_s"] >= start_s) & (frame["end_s"] <= end_s)
        lasted = frame["num_bytes"][inside].sum() / link.bandwidth
        assert end_s - start_s == pytest.approx(lasted, abs=(inside.sum() + 1) * TICK_S)


def test_collectives_get_what_they_ask_for_or_the_share_of_a_flow() -> None:
    """A wire of 10 with two flows: 2 leave them 4 each, 4 would leave 3, so all three get 10/3."""
    for demand, rate in ((2.0, 4.0), (4.0, 10 / 3)):
        env = Clock()
        network, wire = LinkNetwork(env, Recorder()), Link("wire", 10.0, 0.0)
        wire.carry_collectives()
        heard: list[float] = []
        network.watch(
            (wire,),
            lambda wire=wire, heard=heard: heard.append(wire.left_for_collectives),  # type: ignore[misc]
        )
        for k in range(2):
            network.transfer(k, (wire, Link(str(k), 100.0, 0.0)), 40, lambda: None)
        env.run(until=1.0)
        assert network.rates.popitem()[1] == (5.0, 1)
        network.demand((wire,), demand)
        assert network.rates.popitem()[1] == (rate, 1)
        # Collectives in bursts: what the flows leave on average, or an equal share if that is more.
        assert heard[-1] == max(10.0 - 2 * rate, 10.0 / 3)
        env.run()
        assert env.now == pytest.approx(1.0 + 35.0 / rate, abs=TICK_S)
        assert heard[-1] == 10.0


def test_flows_limited_elsewhere_leave_the_rest_to_collectives() -> None:
    """One flow behind a NIC of 1 on a wire of 10 leaves 9, not 5."""
    env = Clock()
    network, wire = LinkNetwork(env, Recorder()), Link("wire", 10.0, 0.0)
    wire.carry_collectives()
    network.transfer(0, (wire, Link("nic", 1.0, 0.0)), 10, lambda: None)
    env.run(until=1.0)
    assert wire.left_for_collectives == 9.0
    network.demand((wire,), 9.5)
    assert network.rates.popitem()[1] == (1.0, 1)
