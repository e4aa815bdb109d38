import itertools
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lit_prune.activations import ClassMoments, Moments, jeffries_matusita


def reference_moments(values, labels, classes):
    values = np.asarray(values, dtype=np.float64)
    rows = [values[labels == k] for k in range(classes)]
    count = np.array([len(row) for row in rows])
    mean = np.array([row.mean(0) if len(row) else np.zeros(values.shape[1]) for row in rows])
    var = np.array([((row - row.mean(0)) ** 2).mean(0) if len(row) else np.zeros(values.shape[1]) for row in rows])
    return count, mean, var


def reference_jm(values, labels, classes):
    """One channel and one pair at a time, straight from the formula."""
    count, mean, var = reference_moments(values, labels, classes)
    deviation = np.sqrt(var)
    deviation[deviation == 0] = 1e-10
    pairs = list(itertools.combinations(range(classes), 2))
    result = np.zeros((values.shape[1], len(pairs)))
    for channel in range(values.shape[1]):
        for column, (p, q) in enumerate(pairs):
            if count[p] == 0 or count[q] == 0:
                continue
            sp, sq = deviation[p, channel], deviation[q, channel]
            both = sp**2 + sq**2
            b = (mean[p, channel] - mean[q, channel]) ** 2 / (4 * both) + 0.5 * np.log(both / (2 * sp * sq))
            result[channel, column] = 2 * (1 - np.exp(-b))
    return result


def samples(kind, objects=400, channels=7, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, objects)
    values = rng.normal(labels[:, None] * rng.random(channels), 1.0, (objects, channels))
    if kind == "large means":
        values += 1e4
    elif kind == "one object":
        labels[labels == 2] = 1
        labels[0] = 2
        values += 1e4
    elif kind == "absent":
        labels[labels == 3] = 0
    elif kind == "constant":
        values[:, 0] = 0.1
        values[labels == 1, 1] = 123.456
        values[labels == 4] = 0
    elif kind == "tiny":
        values *= 1e-12
    return values.astype(np.float32), labels


KINDS = ["plain", "large means", "one object", "absent", "constant", "tiny"]


def streamed(values, labels, classes, batch):
    metric = ClassMoments(values.shape[1], classes)
    for start in range(0, len(values), batch):
        metric.update(torch.from_numpy(values[start : start + batch]), torch.from_numpy(labels[start : start + batch]))
    return metric


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 37, 400])
def test_moments_equal_the_reference(kind, batch):
    values, labels = samples(kind)
    moments = streamed(values, labels, 5, batch).compute()
    count, mean, var = reference_moments(values, labels, 5)
    assert moments.count.tolist() == count.tolist()
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-13, atol=1e-15 * np.abs(values).max())
    np.testing.assert_allclose(moments.var, var, rtol=1e-9, atol=1e-20)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tiny"])
@pytest.mark.parametrize("batch", [1, 37, 400])
def test_jeffries_matusita_equals_the_reference(kind, batch):
    values, labels = samples(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = jeffries_matusita(streamed(values, labels, 5, batch).compute())
    assert found.shape == (7, 10)
    assert found.min() >= 0
    assert found.max() <= 2
    np.testing.assert_allclose(found, reference_jm(values, labels, 5), rtol=0, atol=1e-6)


def test_equal_values_have_no_variance_at_all():
    metric = ClassMoments(3, 2)
    value = torch.tensor([[0.1, 1e4 / 3, -7e-5]])
    for batch in (1, 5, 13):
        metric.update(value.repeat(batch, 1), torch.zeros(batch, dtype=torch.long))
    assert metric.compute().var.tolist() == [[0.0] * 3] * 2
    assert torch.equal(metric.compute().mean[0], value[0].double())


def test_absent_classes_are_zero_and_pairs_are_in_order():
    count = torch.tensor([5, 0, 5])
    mean = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 50.0]])
    found = jeffries_matusita(Moments(count, mean, torch.ones(3, 2)))
    assert found.tolist() == [[0, 0, 0], [0, pytest.approx(2), 0]]


def test_separability_of_one_class_is_refused():
    with pytest.raises(ValueError, match="between two classes, but there is 1"):
        jeffries_matusita(Moments(torch.tensor([5]), torch.zeros(1, 2), torch.ones(1, 2)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_takes_every_precision(dtype):
    metric = ClassMoments(2, 2)
    metric.update(torch.tensor([[1.5, 2.0], [2.5, 2.0]], dtype=dtype), torch.tensor([1, 1]))
    assert metric.half().compute().mean[1].tolist() == [2.0, 2.0]
    assert metric.compute().mean.dtype == torch.float64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_name_and_change_nothing(bad):
    metric = ClassMoments(3, 2, name="model.4.cv1.conv")
    metric.update(torch.ones(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"of layer model\.4\.cv1\.conv are NaN or infinite \(first in channel 2\)"):
        metric.update(torch.tensor([[0.0, 0.0, bad]]), torch.tensor([0]))
    assert metric.compute().count.tolist() == [1, 1]
    assert metric.compute().mean.tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (torch.ones(2, 4), torch.tensor([0, 1]), r"must be \(M, 3\)"),
        (torch.ones(2, 3), torch.tensor([0]), r"labels \(M,\)"),
        (torch.ones(2, 3), torch.tensor([0.0, 1.0]), "must be integers"),
        (torch.ones(2, 3), torch.tensor([0, 2]), r"must be in 0\.\.1"),
        (torch.ones(2, 3), torch.tensor([-1, 0]), r"must be in 0\.\.1"),
    ],
)
def test_bad_updates(values, labels, message):
    with pytest.raises(ValueError, match=message):
        ClassMoments(3, 2).update(values, labels)


@pytest.mark.parametrize("arguments", [(0, 2), (3, 0)])
def test_bad_sizes(arguments):
    with pytest.raises(ValueError, match="must be at least 1, but got 0"):
        ClassMoments(*arguments)


def test_merging_metrics_and_resetting():
    values, labels = samples("large means")
    first, second = streamed(values[:150], labels[:150], 5, 50), streamed(values[150:], labels[150:], 5, 50)
    first.merge_state(second)
    whole = streamed(values, labels, 5, 400).compute()
    assert torch.equal(first.compute().count, whole.count)
    torch.testing.assert_close(first.compute().var, whole.var, rtol=1e-9, atol=0)
    first.reset()
    assert first.packed.abs().sum() == 0


def _on_a_rank(rank, world, port, directory):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    values, labels = samples("large means")
    # Unequal shares, and classes that only one rank has seen.
    mine = labels < 2 if rank == 0 else labels >= 2
    moments = streamed(values[mine], labels[mine], 5, 29).compute()
    torch.save([moments.count, moments.mean, moments.var], f"{directory}/{rank}.pt")
    dist.destroy_process_group()


def test_shares_of_ranks_are_merged():
    values, labels = samples("large means")
    shares = [streamed(values[rows], labels[rows], 5, 29) for rows in (labels < 2, labels == 3, labels >= 2)]
    metric = ClassMoments(
        7,
        5,
        distributed_available_fn=lambda: True,
        dist_sync_fn=lambda state, group: [share.packed for share in shares],
    )
    metric.update(torch.zeros(0, 7), torch.zeros(0, dtype=torch.long))
    twice = labels == 3
    everything, classes = np.concatenate([values, values[twice]]), np.concatenate([labels, labels[twice]])
    count, mean, var = reference_moments(everything, classes, 5)
    found = metric.compute()
    assert found.count.tolist() == count.tolist()
    np.testing.assert_allclose(found.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(found.var, var, rtol=1e-9)


@pytest.mark.slow
def test_ranks_are_merged(tmp_path, free_port):
    mp.spawn(_on_a_rank, (2, free_port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    values, labels = samples("large means")
    count, mean, var = reference_moments(values, labels, 5)
    for mine, other in zip(first, second, strict=True):
        assert torch.equal(mine, other)
    assert first[0].tolist() == count.tolist()
    np.testing.assert_allclose(first[1], mean, rtol=1e-13)
    np.testing.assert_allclose(first[2], var, rtol=1e-9)
