"""Mixtures of clients: the sum has the total rate, more burstiness than Poisson, own lengths."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from helpers.refusals import refused
from simcluster.errors import ConfigError, DataError, SimclusterError
from simcluster.workload import Workload, WorkloadSettings, build
from simcluster.workload.clients import ClientArrivals, Mixture, read_clients, weibull_shape
from simcluster.workload.lengths import FixedLengths

DATA = Path(
    os.environ.get("SIMCLUSTER_DATA", Path(__file__).resolve().parents[2] / "../shared/data")
)
HEADER = (
    "client,mean_rate,cv_mean,pattern_mode,"
    "input_tokens_q0,input_tokens_q0.5,input_tokens_q1,"
    "output_tokens_q0,output_tokens_q0.5,output_tokens_q1\n"
)
TWO = HEADER + "7,1.0,2.0,Weibull,1000,1100,1200,50,60,70\n3,3.0,1.5,Gamma,10,20,30,0,2,4\n"


def written(folder: Path, content: str, name: str = "made_clients.csv.gz") -> Path:
    """A packed clients file."""
    file = folder / name
    file.write_bytes(gzip.compress(content.encode()))
    return file


def requests_of(
    settings: WorkloadSettings, seed: int = 0, rate_rps: float | None = None
) -> Workload:
    """Requests of a run with a model that takes any length."""
    return build(settings, seed=seed, rate_rps=rate_rps, max_model_len=1_000_000)


def assert_mean(values: list[float], expected: float) -> None:
    """The mean over seeds is `expected`, at four standard errors."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values) - expected) < 4 * error, (np.mean(values), expected, error)


@pytest.mark.parametrize("cv", [0.2, 0.5, 1.0, 2.0, 18.0, 170.0])
def test_the_weibull_shape_gives_the_variation_asked_for(cv: float) -> None:
    """Against SciPy's variance; cv = 1 is the exponential distribution, shape 1."""
    shape = weibull_shape(cv)
    mean, variance = stats.weibull_min(shape).stats("mv")
    assert np.sqrt(variance) / mean == pytest.approx(cv, rel=1e-6)
    if cv == 1:
        assert shape == pytest.approx(1)


@pytest.mark.parametrize("row", [0, 1], ids=["Gamma", "Weibull"])
def test_each_client_is_a_stationary_renewal_process(tmp_path: Path, row: int) -> None:
    """Rate, variation of the gaps, and the same expected count in the first as in any second."""
    client = read_clients(written(tmp_path, TWO))[row]
    rates, variances, first = [], [], []
    for seed in range(60):
        times = client.arrivals(0.25, 2000.0, np.random.default_rng(seed))
        assert times[-1] > 2000
        rates.append(float(np.mean(times <= 2000) * len(times) / 2000))
        variances.append(float(np.diff(times).var(ddof=1) * 16))
        first.append(float(np.count_nonzero(times <= 20) / 20))
    assert_mean(rates, 4.0)
    assert_mean(variances, client.cv**2)
    assert_mean(first, 4.0)


def test_the_first_gap_is_the_rest_of_a_gap_under_way(tmp_path: Path) -> None:
    """Its mean is (1 + cv^2) / 2 mean gaps (inspection paradox)."""
    for client in read_clients(written(tmp_path, TWO)):
        firsts = [
            float(client.arrivals(1.0, 0.0, np.random.default_rng(seed))[0]) for seed in range(4000)
        ]
        assert_mean(firsts, (1 + client.cv**2) / 2)


def test_the_sum_of_clients_has_their_rate_and_shares(tmp_path: Path) -> None:
    """4 requests/s in all, three of four from the client of 3 requests/s, lengths by client."""
    arrivals = ClientArrivals(path=str(written(tmp_path, TWO)))
    rates, shares = [], []
    for seed in range(30):
        requests = requests_of(WorkloadSettings(arrivals=arrivals, duration_s=1000), seed)
        assert requests.rate_rps == 4.0
        rates.append(requests.num_requests / 1000)
        small = requests.prompt_len <= 30
        shares.append(float(np.count_nonzero(small) / 1000))
        assert requests.prompt_len[~small].min() >= 1000
        assert requests.output_len[small].min() >= 1
        assert requests.output_len[small].max() <= 4
        assert requests.output_len[~small].min() >= 50
    assert_mean(rates, 4.0)
    assert_mean(shares, 3.0)


def test_the_sum_of_clients_disperses_as_its_parts_do(tmp_path: Path) -> None:
    """Variance over mean of counts in long windows: the mean of cv^2, weighted by rate."""
    clients = read_clients(written(tmp_path, TWO))
    ratios = []
    for seed in range(30):
        points, _ = Mixture(tuple(clients)).points(40_000, seed)
        counts = np.histogram(points, bins=np.arange(0, points[-1], 400.0))[0]
        ratios.append(float(counts.var(ddof=1) / counts.mean()))
    assert_mean(ratios, (3 * 1.5**2 + 1 * 2.0**2) / 4)


def test_the_same_requests_at_every_rate_and_in_every_longer_run(tmp_path: Path) -> None:
    """Gaps are scaled; clients keep their requests."""
    arrivals = ClientArrivals(path=str(written(tmp_path, TWO)))
    slow = requests_of(WorkloadSettings(arrivals=arrivals, num_requests=3000), rate_rps=0.5)
    fast = requests_of(WorkloadSettings(arrivals=arrivals, num_requests=700), rate_rps=4.0)
    np.testing.assert_allclose(slow.arrival_s[:700], 8 * fast.arrival_s, rtol=0, atol=1e-8)
    assert (slow.prompt_len[:700] == fast.prompt_len).all()
    assert (slow.output_len[:700] == fast.output_len).all()


def test_the_number_of_clients_keeps_the_busiest(tmp_path: Path) -> None:
    """One client: only the lengths of the client of 3 requests/s, at its own rate."""
    arrivals = ClientArrivals(path=str(written(tmp_path, TWO)), num_clients=1)
    requests = requests_of(WorkloadSettings(arrivals=arrivals))
    assert requests.num_requests == 2000
    assert requests.rate_rps == 3.0
    assert requests.prompt_len.max() <= 30
    assert requests.notes == ()


def test_clients_without_lengths_are_left_out_and_said_so(tmp_path: Path) -> None:
    """With lengths from elsewhere they take part."""
    file = written(tmp_path, TWO + "9,4.0,1.0,Gamma,,,,,,\n11,0.0,,,,,,,,\n")
    arrivals = ClientArrivals(path=str(file))
    requests = requests_of(WorkloadSettings(arrivals=arrivals))
    assert requests.rate_rps == 4.0
    assert len(requests.notes) == 1
    assert "1 of 3 clients (50% of the request rate) have no lengths" in requests.notes[0]
    fixed = WorkloadSettings(arrivals=arrivals, lengths=FixedLengths(prompt_len=5, output_len=5))
    assert requests_of(fixed).rate_rps == 8.0
    assert requests_of(fixed).notes == ()


def test_a_folder_and_a_model_name_the_file(tmp_path: Path) -> None:
    """A wrong model is refused with those that are there."""
    written(tmp_path, TWO)
    by_folder = ClientArrivals(path=str(tmp_path), model="made")
    assert requests_of(WorkloadSettings(arrivals=by_folder)).num_requests == 2000
    for model in (None, "maid"):
        wrong = WorkloadSettings(arrivals=ClientArrivals(path=str(tmp_path), model=model))
        with pytest.raises(ConfigError, match="holds the clients of made") as caught:
            requests_of(wrong)
        assert caught.value.key == "workload.arrivals.model"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (HEADER, "no client has a rate above 0"),
        (TWO.replace("3,3.0", "3,-3.0"), "line 3, mean_rate = '-3.0'"),
        (TWO.replace("Gamma", "Pareto"), "line 3, pattern_mode = 'Pareto'"),
        (TWO.replace("1.5,Gamma", "0,Gamma"), "line 3, cv_mean = '0'"),
        (TWO.replace("1.5,Gamma", "much,Gamma"), "line 3, cv_mean = 'much'"),
        (TWO.replace("10,20,30", "10,40,30"), "line 3, input_tokens_q1 = '30'"),
        (TWO.replace("10,20,30", "10,,30"), "line 3, input_tokens_q0.5 = ''"),
        (TWO.replace("cv_mean", "cv"), "missing column cv_mean"),
        (TWO.replace("tokens_q0.5", "tokens_qhalf"), "input_tokens_qhalf is no quantile"),
        (HEADER + "9,4.0,1.0,Gamma,,,,,,\n", "no client has length columns"),
    ],
)
def test_a_bad_clients_file_is_refused_in_one_line(tmp_path: Path, content: str, says: str) -> None:
    """File, line, column, value, rule and remedy."""
    arrivals = ClientArrivals(path=str(written(tmp_path, content)))
    with refused(says, error=DataError):
        requests_of(WorkloadSettings(arrivals=arrivals))


def test_a_missing_clients_file_is_refused_in_one_line(tmp_path: Path) -> None:
    """As any input file."""
    with pytest.raises(SimclusterError, match="no such file"):
        requests_of(WorkloadSettings(arrivals=ClientArrivals(path=str(tmp_path / "none.csv"))))


@pytest.mark.parametrize("model", ["m-small", "m-mid", "m-large", "deepseek-r1"])
def test_measured_clients_keep_their_rate_burstiness_and_means(model: str) -> None:
    """Total rate, dispersion above Poisson, and the published means of the lengths.

    The means come from quantiles, the last 0.1 % of which spans two decades: up to 6 % off by
    interpolation, and the rest is the draw.
    """
    folder = DATA / "servegen_clients"
    if not folder.exists():
        pytest.skip("measured set servegen_clients is not here (SIMCLUSTER_DATA)")
    import pandas as pd

    frame = pd.read_csv(folder / f"{model}_clients.csv.gz")
    known = frame[(frame.mean_rate > 0) & frame.input_tokens_mean.notna()]
    arrivals = ClientArrivals(path=str(folder), model=model)
    rates, ratios, prompts, outputs = [], [], [], []
    for seed in range(20):
        requests = requests_of(WorkloadSettings(arrivals=arrivals, num_requests=40_000), seed)
        assert requests.rate_rps is not None
        assert requests.rate_rps == pytest.approx(known.mean_rate.sum())
        end_s = float(requests.arrival_s[-1])
        rates.append(requests.num_requests / end_s / requests.rate_rps)
        bins = np.arange(0, end_s, 100 / requests.rate_rps)
        counts = np.histogram(requests.arrival_s, bins=bins)[0]
        ratios.append(float(counts.var(ddof=1) / counts.mean()))
        prompts.append(requests.prompt_len.mean())
        outputs.append(requests.output_len.mean())
    assert_mean(rates, 1.0)
    assert np.mean(ratios) > 1.5
    weight = known.mean_rate / known.mean_rate.sum()
    assert np.mean(prompts) == pytest.approx((weight * known.input_tokens_mean).sum(), rel=0.08)
    assert np.mean(outputs) == pytest.approx((weight * known.output_tokens_mean).sum(), rel=0.08)
