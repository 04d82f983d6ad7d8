"""Sources of known entropy: the entropy by enumeration, by the true model, and on every machine."""

import hashlib
import itertools
import math

import numpy as np
import pytest
from scipy import special

from jaxlm.data import synthetic
from jaxlm.data.sources import corpora, source
from jaxlm.data.synthetic import hidden, learner, machine, tree

SMALL = [
    "known:markov?alphabet=3&order=2&length=6&seed=3",
    "known:tree?alphabet=4&depth=2&fan=2&length=6&zipf=1.5&change=9",
    "known:unifilar?states=5&alphabet=3&length=6",
]
LARGE = [
    "known:markov?documents=4096",
    "known:tree?alphabet=32&depth=3&fan=6&documents=4096&seed=2",
    "known:unifilar?documents=4096",
    "known:hidden?documents=4096",
]
# sha256 of the first 64 documents: depends on SHAKE-256 and the constants alone.
GOLDEN = [
    "f021b79f4944",
    "4e508e56a010",
    "2c4c7c25023d",
    "c1e45a09c371",
    "80ba83baf56e",
    "37f650712891",
    "8f17869260be",
]


@pytest.mark.parametrize("name", SMALL)
def test_a_documents_entropy_is_the_sum_over_all_documents(name):
    """Every document there can be, its probability multiplied out symbol by symbol."""
    cfg = synthetic.parse(name)
    built = synthetic.build(cfg)
    machine.check(built)
    total = mass = 0.0
    for symbols in itertools.product(range(cfg.alphabet), repeat=cfg.length):
        state, p = 0, 1.0
        for x in symbols:
            p *= built.weights[state, x] / 65536
            state = built.following[state, x]
        mass += p
        total -= p * math.log(p)
    found = synthetic.entropy(name)
    assert mass == pytest.approx(1, abs=1e-12)
    assert found.nats == pytest.approx(total, rel=1e-12)
    assert (found.tokens, found.error) == (7, 0.0)
    assert found.nats_per_token == pytest.approx(total / 7, rel=1e-12)


def test_hidden_bounds_hold_what_enumeration_gives():
    """H(X_1 .. X_8) of a small chain, from the probabilities of all 256 documents of it."""
    cfg = hidden.Hidden(alphabet=2, stay=9, zipf=2.0)
    chain = hidden.chain(cfg)
    assert (chain.moves.sum(0) == machine.TOTAL).all() and (chain.moves.sum(1) == 65536).all()
    every = np.array(list(itertools.product(range(2), repeat=8)))
    nats = hidden.score(chain, every)
    assert np.exp(-nats).sum() == pytest.approx(1, abs=1e-12)
    whole = float(np.exp(-nats) @ nats)
    found = hidden.bounds(chain)
    n = len(found.upper)
    assert n > 8
    assert found.upper[:8].sum() == pytest.approx(whole, rel=1e-12)
    assert hidden.document_entropy(chain, 8) == (pytest.approx(whole, rel=1e-12), 0.0)
    # conditioned on S_1 the entropies rise, without it they fall, and they meet: 4.4.1, 4.4.2
    assert (np.diff(found.upper) < 1e-12).all() and (np.diff(found.lower) > -1e-12).all()
    gap = found.upper - found.lower
    assert (gap > 0).all() and gap[-1] < 1e-3 * gap[0]
    # bounds from fewer symbols hold those from more
    long, error = hidden.document_entropy(chain, 100)
    assert found.lower[4] * 92 < long - found.upper[:8].sum() < found.upper[4] * 92
    assert error == pytest.approx(gap[-1] / 2 * (100 - n), rel=1e-9)


@pytest.mark.parametrize("name", LARGE)
def test_the_true_model_pays_the_entropy_on_a_sample(name):
    """The ideal predictor attains H: within four standard errors, which are below half a percent;
    a model that is told less (the symbols' frequencies) pays more."""
    texts = list(synthetic.texts(name))
    cfg, found = synthetic.parse(name), synthetic.entropy(name)
    nats = synthetic.score(name, texts)
    assert len(nats) == 4096
    error = nats.std() / math.sqrt(len(nats))
    assert error < 0.002 * found.nats
    assert abs(nats.mean() - found.nats) < 4 * error + found.error * found.tokens
    counts = np.array([sum(text.count(c) for text in texts) for c in set("".join(texts))])
    p = counts / counts.sum()
    assert -(p * np.log(p)).sum() * cfg.length > found.nats + 20 * error


def test_symbols_follow_the_machine():
    """Each state's empirical next symbols against its row, by chi-squared over all rows."""
    built = tree.tree(tree.Tree(alphabet=8, depth=2, fan=4, zipf=1.0))
    x = machine.sample(built, "a test", 0, 100)
    seen = np.zeros(built.weights.shape)
    state = np.zeros(len(x), int)
    for column in x.T:
        np.add.at(seen, (state, column), 1)
        state = built.following[state, column]
    expected = seen.sum(1, keepdims=True) * built.weights / 65536
    kept = expected > 5
    chi2 = ((seen - expected)[kept] ** 2 / expected[kept]).sum()
    assert abs(chi2 - kept.sum()) < 5 * math.sqrt(2 * kept.sum())
    visited = machine.visits(built, 100) * len(x)
    assert np.abs(seen.sum(1) - visited).max() < 6 * math.sqrt(visited.max())


def test_a_context_is_the_longest_suffix_in_the_tree():
    cfg = tree.Tree(alphabet=5, depth=3, fan=2)
    built = tree.tree(cfg)
    names = [()] + [
        (*old, new)
        for d in (1, 2, 3)
        for old in itertools.product(range(2), repeat=d - 1)
        for new in range(5)
    ]
    assert len(names) == len(built.weights)
    rng = np.random.default_rng(0)
    state, said = 0, ()
    for x in rng.choice(5, 500, p=[0.4, 0.3, 0.1, 0.1, 0.1]).tolist():
        said = (*said, x)
        state = built.following[state, x]
        assert names[state] == max((n for n in names if said[len(said) - len(n) :] == n), key=len)


def test_rates_are_those_of_stationary_sources():
    """Against the eigenvector; and the old corpus `markov`, whose rate is 1.875 bits."""
    built = synthetic.build(synthetic.parse("known:markov?alphabet=4"))
    p = np.zeros((len(built.weights),) * 2)
    for x in range(4):
        np.add.at(p, (np.arange(len(p)), built.following[:, x]), built.weights[:, x] / 65536)
    values, vectors = np.linalg.eig(p.T)
    pi = np.real(vectors[:, np.argmax(np.real(values))])
    pi /= pi.sum()
    rate, error = machine.rate(built)
    assert rate == pytest.approx(pi @ machine.row_entropy(built), abs=1e-11) and error < 1e-11
    # documents come to the stationary distribution
    late = machine.visits(built, 60) - machine.visits(built, 59)
    np.testing.assert_allclose(late, pi, atol=1e-9)

    weights = np.zeros((16, 16), np.int64)
    following = np.tile(np.arange(16), (16, 1)).astype(np.int32)
    for i, row in enumerate(corpora.markov_successors()):
        weights[i, row] = np.array(corpora.MARKOV_WEIGHTS) * 4096
    old, error = machine.rate(machine.Machine(weights, following))
    assert old == pytest.approx(1.875 * math.log(2), abs=1e-12) and error < 1e-12


def test_periodic_and_two_class_sources_state_their_error():
    """Two states that alternate have one rate; two that never meet have none, and say so."""
    weights = np.array([[65536, 0], [32768, 32768]])
    swap = machine.Machine(weights, np.array([[1, 1], [0, 0]], np.int32))
    assert machine.rate(swap)[0] == pytest.approx(math.log(2) / 2, abs=1e-11)
    apart = machine.Machine(weights, np.array([[0, 0], [1, 1]], np.int32))
    assert machine.rate(apart, most=50)[1] == pytest.approx(math.log(2) / 2)


def test_the_same_on_every_machine():
    found = {}
    for name in (*LARGE, *SMALL):
        texts = "\n".join(itertools.islice(synthetic.texts(name), 64))
        found[name] = hashlib.sha256(texts.encode()).hexdigest()[:12]
    assert list(found.values()) == GOLDEN


def test_documents_of_the_source_by_name():
    name = "known:tree?documents=3000&alphabet=8&fan=8&length=31"
    read = list(source.documents(name))
    assert len(read) == 3000 and read[7].origin == f"{name}:7"
    assert {len(d.text) for d in read} == {31} and set(read[0].text) <= set(synthetic.SYMBOLS[:8])
    fewer = [d.text for d in source.documents(name.replace("3000", "40"))]
    assert fewer == [d.text for d in read[:40]]
    prints = {source.fingerprint(n) for n in (name, name + "&seed=1", name + "&zipf=1.3")}
    assert len(prints) == 3
    # a field given as its default is the same source
    assert source.fingerprint("known:tree?seed=0") == source.fingerprint("known:tree")


@pytest.mark.parametrize(
    "name, told",
    [
        ("known:treee", "no kind 'treee'; did you mean 'tree'"),
        ("known:tree?dept=2", "'dept=2' sets no field; did you mean 'depth'"),
        ("known:tree?depth", "'depth' sets no field"),
        ("known:tree?depth=two", "depth='two'; int is needed"),
        ("known:tree?depth=2&depth=3", "depth is given twice"),
        ("known:tree?alphabet=95", "alphabet=95; 2 .. 94 is needed"),
        ("known:tree?alphabet=4", "fan=64; at most alphabet=4"),
        ("known:tree?depth=4", "contexts of 64 symbols; at most"),
        ("known:tree?zipf=nan", "zipf=nan; 0.0 .. 8.0 is needed"),
        ("known:hidden?states=2", "states=2; 3 .. 32 is needed"),
    ],
)
def test_wrong_names_are_refused(name, told):
    with pytest.raises(ValueError, match="source 'known:.*|contexts") as error:
        source.documents(name)
    assert told in str(error.value)


def test_what_is_no_document_is_not_scored():
    with pytest.raises(ValueError, match="text 1: 3 bytes"):
        synthetic.score("known:unifilar?length=4", ["!!!!", "!!!"])
    with pytest.raises(ValueError, match="text 0: 4 bytes"):
        synthetic.score("known:unifilar?length=4", ["!!!z"])


def test_machines_that_are_none():
    with pytest.raises(ValueError, match="weights of state 1 sum to 3"):
        machine.check(machine.Machine(np.array([[65536], [3]]), np.zeros((2, 1), np.int32)))
    with pytest.raises(ValueError, match="states 9 .. 9"):
        machine.check(machine.Machine(np.array([[65536]]), np.array([[9]], np.int32)))


def test_the_ideal_learner_loses_what_simulation_gives():
    """Poisson counts drawn, predictions made, their loss averaged; and its three limits."""
    built = tree.tree(tree.Tree(alphabet=6, depth=2, fan=3, zipf=1.5))
    share = machine.visits(built, 50) / 50
    p = built.weights / 65536
    q = share @ p
    kept = np.argsort(-share, kind="stable")[:9]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        guess = np.tile(q, (len(p), 1))
        counts = rng.poisson(3000 * share[kept, None] * p[kept])
        guess[kept] = (counts + 4 * q) / (counts.sum(1, keepdims=True) + 4)
        drawn.append(-np.sum(share[:, None] * p * np.log(guess)))
    found = learner.loss(built, 50, np.array([9]), np.array([3000.0]))[0]
    assert found == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 20)
    entropy = machine.document_entropy(built, 50) / 50
    states = len(p)
    at = learner.loss(built, 50, np.array([states, states, 0]), np.array([1e12, 0.0, 1e12]))
    assert at[0] == pytest.approx(entropy, abs=1e-8)
    assert at[1:] == pytest.approx(-np.sum(q * np.log(q)), rel=1e-12)
    grid = learner.loss(built, 50, np.arange(states + 1), np.full(states + 1, 1e6))
    assert (np.diff(grid) < 0).all() and grid[-1] > entropy


def test_the_mean_logarithm_of_counts():
    """Both sides of where the sum gives way to the series, against the Poisson sum in full."""
    k = np.arange(400)
    for mean in (0.0, 0.3, 99.9, 100.1, 200.0):
        chance = np.exp(special.xlogy(k, mean) - mean - special.gammaln(k + 1))
        exact = chance @ np.log(k + 0.7)
        found = learner.mean_log(np.array([mean]), np.array([0.7]))[0]
        assert found == pytest.approx(exact, abs=5e-8)


def test_learners_that_cannot_be_are_refused():
    built = tree.tree(tree.Tree(alphabet=4, depth=1, fan=4))
    with pytest.raises(ValueError, match="contexts 9 .. 9"):
        learner.loss(built, 8, np.array([9]), np.array([1.0]))
