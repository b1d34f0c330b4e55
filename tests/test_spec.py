"""Estimators as dicts and as text: each comes back as it was, and what is wrong is named with its place."""

import inspect
import json
import math

import pytest

from reweigh import (
    GEOMETRIC,
    SEQUENCE,
    Batch,
    Estimator,
    RatioStats,
    Truncate,
    caps,
    dppo_tv,
    for_advantage,
    geo_rs,
    group_snis,
    k3_rs,
    naive,
    opsm,
    self_normalised,
    seq_tis,
    snis,
    token_tis,
    transforms,
    trm,
    vespo,
    weigh,
)
from reweigh.__main__ import main
from reweigh.caps import Balance, CapRule, Tradeoff
from reweigh.cli.scans import asked, read_estimators
from reweigh.levels import k1, log_ratio, prefix_budget, prob_diff
from reweigh.named import NAMED
from reweigh.spec import RULES, STATISTICS, TRANSFORMS, from_dict, parse, to_dict
from reweigh.transforms import AtMost, Transform, TruncateAt

COMPOSED = {
    "product": geo_rs(0.99, 1.01) * token_tis(2.0),
    "rule": seq_tis(Tradeoff(noise=8.0, n=64)),
    "normalised": self_normalised(seq_tis(3.0), by="prompt"),
    "signed": for_advantage(-1, k3_rs(0.02)) * token_tis(5.0),
}


@pytest.mark.parametrize("estimator", [*(f() for f in NAMED.values()), *COMPOSED.values()], ids=[*NAMED, *COMPOSED])
def test_an_estimator_comes_back_from_json_as_it_was(estimator):
    text = json.dumps(to_dict(estimator), allow_nan=False)
    assert from_dict(json.loads(text)) == estimator


@pytest.mark.parametrize("name", NAMED)
def test_a_name_alone_is_the_default(name):
    assert from_dict({"name": name}) == NAMED[name]()


def test_every_transform_statistic_and_rule_of_the_library_has_its_name():
    def concrete(module, base):
        kinds = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, base)]
        return {x for x in kinds if not inspect.isabstract(x)}

    assert concrete(transforms, Transform) == set(TRANSFORMS.values())
    assert concrete(caps, CapRule) == set(RULES.values())
    used = {factor.of for f in NAMED.values() for factor in f().factors} | {log_ratio, prob_diff}
    assert used <= set(STATISTICS.values())


FORMS = [
    ({"name": "seq_tis", "cap": 2}, seq_tis(2.0)),
    ({"name": "seq_tis", "cap": "inf"}, seq_tis(math.inf)),
    ({"name": "seq_tis", "cap": "1e1"}, seq_tis(10.0)),
    ({"name": "seq_tis", "cap": {"name": "Balance", "n": 64}}, seq_tis(Balance(n=64))),
    ({"name": "seq_tis", "cap": "Balance"}, seq_tis(Balance())),
    ({"name": "trm", "worst": None}, trm(worst=None)),
    ({"name": "vespo", "rise": [1, 2]}, vespo(rise=(1.0, 2.0))),
    ([{"name": "geo_rs"}, {"name": "token_tis"}], geo_rs() * token_tis()),
    ({"product": [{"name": "geo_rs"}, {"name": "token_tis"}]}, geo_rs() * token_tis()),
    ({"factors": []}, naive()),
    ({"factors": [{"level": "sequence", "transform": {"name": "Clip", "high": 2}}]}, seq_tis(2.0)),
    ({"factors": [{"level": "geometric", "transform": {"name": "AtMost", "bound": 0.01}, "of": "k3"}]}, k3_rs()),
    ({"factors": [{"level": "sequence"}], "normalise": "prompt"}, group_snis()),
    (
        {"factors": [{"level": {"name": "prefix_budget", "mean": 0.1}, "transform": {"name": "AtMost", "bound": 1}}]},
        weigh(prefix_budget(0.1), AtMost(1.0)),
    ),
    ({"self_normalised": {"name": "seq_is"}}, snis()),
    (
        {"for_advantage": -1, "estimator": {"factors": [{"level": "geometric", "transform": "Identity", "of": "k1"}]}},
        for_advantage(-1, weigh(GEOMETRIC, of=k1)),
    ),
]


@pytest.mark.parametrize(("value", "estimator"), FORMS, ids=[str(value)[:40] for value, _ in FORMS])
def test_forms(value, estimator):
    assert from_dict(value) == estimator


WRONG = [
    ({"name": "seq_tsi"}, "estimator: no estimator is called 'seq_tsi'\nhint: did you mean seq_tis?"),
    ({"name": ["seq_tis"]}, "no estimator is called ['seq_tis']"),
    ({"name": "seq_tis", "kap": 2}, "estimator: seq_tis: takes cap, got kap\nhint: did you mean cap?"),
    ({"name": "naive", "cap": 2}, "naive: takes no arguments, got cap\nhint: leave it out."),
    ({"name": "seq_tis", "cap": "two"}, "seq_tis, cap: must be a number, got 'two'"),
    ({"name": "seq_tis", "cap": True}, "seq_tis, cap: must be a number, got True"),
    ({"name": "seq_tis", "cap": None}, "seq_tis, cap: must be a number, got None"),
    ({"name": "seq_tis", "cap": [2]}, "seq_tis, cap: must be a number, got [2]"),
    ({"name": "seq_tis", "cap": {"name": "Balanc"}}, "no rule is called 'Balanc'\nhint: did you mean Balance?"),
    ({"name": "seq_tis", "cap": {"n": 3}}, "a rule needs a name, got n"),
    ({"name": "seq_tis", "cap": {"name": "Balance", "n": 0}}, "Balance: n must be >= 1, got 0.0"),
    ({"name": "geo_rs", "low": 2, "high": 1}, "geo_rs: Screen: low must be <= high, got low=2.0, high=1.0"),
    ({"name": "vespo", "rise": [1]}, "vespo, rise: must be 2 numbers, got [1]"),
    ({"name": "vespo", "rise": 1}, "vespo, rise: must be 2 numbers, got 1"),
    ({"factors": [{"level": "seq"}]}, "factor 1: no level is called 'seq'"),
    ({"factors": [{"level": {"name": "prefix_badget"}}]}, "no level is called 'prefix_badget'\nhint: did you mean"),
    ({"factors": [{"level": {"name": "prefix_budget", "mean": -1}}]}, "mean at least 0, got floor=0.8, mean=-1.0"),
    ({"factors": [{"levels": "token"}]}, "a factor does not go with levels\nhint: did you mean level?"),
    ({"factors": [{"transform": "Clip"}]}, "factor 1: needs a level"),
    ({"factors": [{"level": "token", "sign": 2}]}, "factor 1: sign must be -1, 0 or 1, got 2"),
    ({"factors": [{"level": "token", "of": "k4"}]}, "no statistic is called 'k4'\nhint: one of log_ratio, k1"),
    ({"factors": [{"level": "token", "transform": "AtMost"}]}, "factor 1: AtMost: needs bound"),
    (
        {"factors": [{"level": "token", "transform": {"name": "TruncateAt", "rule": 2}}]},
        "rule: must be a rule (Balance",
    ),
    ({"factors": {}}, "factors must be a list, got {}"),
    ({"factors": [3]}, "factor 1: must be a mapping, got 3"),
    ([], "a product must be a list of estimators, got []"),
    ([{"name": "naive"}, 3], "estimator, part 2: must be a mapping or a list, got 3"),
    ({"self_normalised": {"name": "seq_is"}, "by": "promt"}, "no set is called 'promt'\nhint: did you mean prompt?"),
    ({"for_advantage": "x", "estimator": {"name": "seq_is"}}, "for_advantage: must be an integer, got 'x'"),
    ({"cap": 2}, "needs one of the keys name, factors, product, self_normalised, for_advantage, got cap"),
    ("seq_tis", "must be a mapping or a list, got 'seq_tis'"),
]


@pytest.mark.parametrize(("value", "message"), WRONG, ids=[str(value)[:40] for value, _ in WRONG])
def test_what_is_wrong_is_named(value, message):
    with pytest.raises(ValueError, match=r"^estimator") as caught:
        from_dict(value)
    assert message in str(caught.value)


def test_what_no_name_says_is_refused():
    class Own(Transform):
        def __call__(self, x, valid):
            return x, valid

    with pytest.raises(ValueError, match="is not of this library"):
        to_dict(weigh(SEQUENCE, Own()))
    with pytest.raises(ValueError, match="is not a statistic of this library"):
        to_dict(weigh(SEQUENCE, of=lambda batch: batch.log_ratio))
    batch = Batch.padded(*(reweigh_zeros() for _ in range(2)), reweigh_zeros() + 1)
    stats = RatioStats.of(batch, SEQUENCE)
    with pytest.raises(ValueError, match="Balance holds stats"):
        to_dict(weigh(SEQUENCE, TruncateAt(Balance(stats=stats))))


def reweigh_zeros():
    import torch

    return torch.zeros(2, 3)


TEXTS = {
    "seq_tis(2)": seq_tis(2.0),
    "naive": naive(),
    "seq_tis(Balance())": seq_tis(Balance()),
    "seq_tis(cap=Tradeoff(n=64))": seq_tis(Tradeoff(n=64)),
    "token_tis(2) * geo_rs * k3_rs(0.01)": token_tis(2.0) * geo_rs() * k3_rs(0.01),
    "weigh(SEQUENCE, Truncate(2))": seq_tis(2.0),
    "weigh(GEOMETRIC, AtMost(0.01), of=k3)": k3_rs(0.01),
    "self_normalised(seq_is(), by='prompt')": group_snis(),
    "for_advantage(-1, weigh(GEOMETRIC, AtMost(0.05), of=k1))": opsm(0.05),
    "dppo_tv(0.2, 0.2, inf)": dppo_tv(),
    "vespo((2, 3), (3, 2))": vespo(),
    "trm(None, 0.002)": trm(None),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_read_as_python_would(text):
    assert parse(text) == {text: TEXTS[text]}


def test_names_are_written_alike_however_they_were_typed():
    assert list(parse(" seq_tis(2),geo_rs(0.99,1.01)*token_tis( 2 ) ")) == [
        "seq_tis(2)",
        "geo_rs(0.99, 1.01) * token_tis(2)",
    ]


BAD_TEXTS = {
    "seq_tsi(2)": "--estimators: no estimator is called 'seq_tsi'\nhint: did you mean seq_tis?",
    "seq_tis(2": "--estimators: cannot be read at column 8",
    "": "--estimators: cannot be read: ''",
    "()": "names no estimator",
    "seq_tis(2) + naive": "estimators are joined with *, got seq_tis(2) + naive",
    "__import__('os').system('touch broken')": "not an estimator: __import__('os').system('touch broken')",
    "seq_tis(open('x'))": "no estimator is called 'open'",
    "seq_tis(1 if naive else 2)": "not a value: 1 if naive else 2",
    "seq_tis(lambda: 1)": "not a value: lambda: 1",
    "seq_tis(*[1])": "write the arguments out: seq_tis(*[1])",
    "seq_tis(**x)": "write the arguments out",
    "seq_tis(1, 2)": "seq_tis takes cap, got 2 values",
    "seq_tis(2, cap=3)": "seq_tis is given cap twice",
    "geo_rs(lo=1)": "geo_rs: takes low, high, got lo\nhint: did you mean low?",
    "weigh(SEQ)": "no level is called 'SEQ'",
    "for_advantage(2, naive)": "sign must be +1 or -1, got 2",
    "3": "not an estimator: 3",
}


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_text_that_is_no_estimator_runs_nothing_and_says_why(text):
    with pytest.raises(ValueError, match=r"estimators|for_advantage") as caught:
        parse(text, "--estimators")
    assert BAD_TEXTS[text] in str(caught.value)


YAML = """
estimators:
  mine: [{name: geo_rs, low: 0.99, high: 1.01}, {name: token_tis, cap: 2}]
  text: geo_rs(0.99, 1.01) * token_tis(2)
  spelt: {factors: [{level: sequence, transform: {name: Clip, high: 1e1}}]}
  whole: {self_normalised: {name: seq_is}}
"""


def test_a_yaml_file_of_compositions(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(YAML)
    found = read_estimators(path)
    assert found["mine"] == found["text"] == geo_rs(0.99, 1.01) * token_tis(2.0)
    assert found["spelt"] == seq_tis(10.0)
    tried = asked(str(path))
    assert list(tried.estimators) == ["mine", "text", "spelt"]
    assert "looks at a whole batch" in tried.refused["whole"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 3\n", "must be a mapping of names to estimators, got list"),
        ("a: {name: seq_tsi}", "mine.yaml, a: no estimator is called 'seq_tsi'\nhint: did you mean seq_tis?"),
        ("a: naive, seq_is", "mine.yaml, a: must be one estimator, got 2"),
        ("a: [", "not YAML"),
        ("", "must be a mapping of names to estimators, got NoneType"),
    ],
)
def test_a_wrong_yaml_file_is_an_error_with_its_name(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml") as caught:
        read_estimators(path)
    assert message in str(caught.value)


def test_all_has_every_name_once_and_refuses_what_reads_a_batch():
    found = asked("all")
    estimators = list(found.estimators.values())
    assert all(isinstance(one, Estimator) for one in estimators)
    assert all(estimators.count(one) == 1 for one in estimators)
    for name, make in NAMED.items():
        if make().reads_batch:
            assert any(refused.startswith(name) for refused in found.refused)
        else:
            assert make() in estimators
    for name, one in found.estimators.items():
        assert parse(name) == {name: one}  # a name can be typed again


def test_the_command_says_what_it_does_not_know(capsys, tmp_path):
    assert main(["audit", str(tmp_path), "--estimators", "seq_tsi(2)"]) == 2
    err = capsys.readouterr().err
    assert "error: --estimators: no estimator is called 'seq_tsi'" in err
    assert "hint: did you mean seq_tis?" in err
    assert main(["audit", str(tmp_path), "--estimators", "gone.yaml"]) == 2
    assert "gone.yaml: no such file" in capsys.readouterr().err


def test_a_truncation_is_spelt_as_the_clip_that_it_is():
    assert to_dict(weigh(SEQUENCE, Truncate(2.0)))["factors"][0]["transform"] == {
        "name": "Clip",
        "low": 0.0,
        "high": 2.0,
    }
