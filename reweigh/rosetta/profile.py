"""Knowledge of a framework, read from its data file: options, conventions, words, quirks and metrics.

A data file is TOML beside the module of the same name in `frameworks/`. Its keys:

    name, version, section      texts; `section` is where the options stand in a configuration, "" for the top
    known, aliases              versions that the same holds for; other names, and forks with the same options
    extends                     the data file of a fork's origin: what is not said here is as it says
    markers                     texts that a launch script of this framework, and of no other, has in it
    [options]                   NAME = { default, says, values, ... }: the attributes of `Option`; no default is null;
                                values are the words that it takes, an array, or a table of word = what it changes
    [sampling]                  the attributes of `Sampling`: of what the sampler's log-probs are, and the trainer's
    [conventions]               the attributes of `Conventions`
    [words.WORD]                says, options, metric
    [presets]                   NAME = options that the framework sets under that name
    [quirks]                    NAME = text: a switch of the module, or one that frameworks share (`plan.SWITCHES`)
    [metrics]                   PATTERN = { equal, says, also }: `equal` is a function of the module, or a shared one
                                (`metrics.EQUALS`), none where there is no equal; `also` are more patterns
    [[templates]]               makes, options: see `Template`

All that is wrong in one is told with the file and the key.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from reweigh.rosetta.metrics import EQUALS, Equal
from reweigh.rosetta.plan import SWITCHES, Apply, Options, Reading, RefusedError, unknown_word

FOLDER = Path(__file__).parent / "frameworks"
_T = TypeVar("_T")


Kind = Literal["flag", "number", "word", "any"]
Role = Literal["weight", "loss", "sampling", "switch"]
_LogProbs = Literal["processed", "raw", "unknown"]


@dataclass(frozen=True)
class Option:
    """One option: where it stands, what it is if not given, which values it takes, what it means.

    Attributes:
        name: exact upstream name; one with a dot needs what stands before the dot.
        default: its value if not given.
        says: what it does, in our words, in one line.
        values: the words that it takes, if it takes words.
        notes: what some of those words change, where that is not the weight.
        kind: what values it takes; read off the default and the words if not said.
        role: what it is about: the weight, the loss around it, the law that is sampled from, or whether anything is
            compared at all.
        at: the places, ends of dotted paths, where the name means this option; none is the framework's section.
        former: the version that had it, of an option that the framework no longer has.
        now: its successor, of such an option.
        was: words of earlier versions, each with the version and the successor.
        unless: what is said of a configuration that does not give it.
    """

    name: str
    default: Any
    says: str
    values: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict[str, str])
    kind: Kind = "any"
    role: Role = "weight"
    at: tuple[str, ...] = ()
    former: str = ""
    now: str = ""
    was: Mapping[str, str] = field(default_factory=dict[str, str])
    unless: str = ""


@dataclass(frozen=True)
class Sampling:
    """Of which laws the two log-probs of a ratio are.

    Attributes:
        logprobs: of what the sampler's are if no option says: of the law that was sampled from (`processed`), of the
            model's law before temperature, truncation and penalties (`raw`), or `unknown`.
        temperature: whether the trainer divides its logits by the temperature of sampling.
        same: the option that makes the trainer score over the tokens that truncation left; "" if there is none.
        says: what the framework does besides.
    """

    logprobs: _LogProbs = "unknown"
    temperature: bool = True
    same: str = ""
    says: str = ""


@dataclass(frozen=True)
class Conventions:
    """A framework's way of doing what every framework does, each in a few words, for tables.

    Attributes:
        ratio: whose probabilities are divided.
        bounds: on what the bounds act, and whether the bound itself is inside.
        k1: its direction.
        sequence: what a sequence level is: the product or the geometric mean.
        survivors: what a unit weighs that a mask left.
        not_finite: what a non-finite ratio becomes.
        clamp: of log ratios, before anything else.
        detached: whether weights carry a gradient.
        denominator: of the loss, after a rejection.
        normalise: over what weights are divided by their mean.
    """

    ratio: str
    bounds: str
    k1: str
    sequence: str
    survivors: str
    not_finite: str
    clamp: str
    detached: str
    denominator: str
    normalise: str


@dataclass(frozen=True)
class Quirk:
    """Something that the framework does and a plan, as we run it, does not; switched on, its numbers come out.

    Attributes:
        name: short, unique in the profile.
        says: what the framework does, and what we do.
        apply: the switch.
    """

    name: str
    says: str
    apply: Apply = field(repr=False)


@dataclass(frozen=True)
class Metric:
    """A metric that the framework logs, and our equal of it.

    Attributes:
        names: its names, as shell patterns.
        equal: how it comes out of our functions; None if it has no equal.
        says: what it is, in our words; for one without an equal, why.
    """

    names: tuple[str, ...]
    equal: Equal | None = field(repr=False)
    says: str


@dataclass(frozen=True)
class Word:
    """One meaning of a word: options, or a metric of that name.

    Attributes:
        word: as the framework writes it.
        options: options that a user would set, with the framework's own default or recommended bounds.
        metric: the metric that is called so, if it is one.
        says: what sets this meaning apart.
    """

    word: str
    says: str
    options: Mapping[str, Any] | None = None
    metric: str = ""


@dataclass(frozen=True)
class Bounds:
    """Filling of a template: bounds on pi/mu, and one in the unit of a divergence."""

    low: float
    high: float
    bound: float


_FAR = 1e9  # a ratio that stands for no bound


def _inverse(bound: float) -> float:
    """Turn a bound on pi/mu into one on mu/pi; 0 and infinity are no bounds."""
    return min(_FAR, 1 / max(min(bound, _FAR), 1e-300))


_SLOTS: Mapping[str, Callable[[Bounds], Any]] = {
    "<low>": lambda b: b.low,
    "<high>": lambda b: b.high,
    "<bound>": lambda b: b.bound,
    "<low or none>": lambda b: b.low or None,
    "<low or 1e-9>": lambda b: b.low or 1e-9,
    "<high or none>": lambda b: None if math.isinf(b.high) else b.high,
    "<high or 0>": lambda b: 0.0 if math.isinf(b.high) else b.high,
    "<low>_<high>": lambda b: f"{b.low:g}_{b.high:g}",
    "<1/high>_<1/low>": lambda b: f"{_inverse(b.high):.12g}_{_inverse(b.low):.12g}",
}


@dataclass(frozen=True)
class Template:
    """Options of a framework with bounds left open.

    In a data file, `{ any = [...] }` stands for each of its values: one template for each.

    Attributes:
        makes: what they make.
        options: with slots such as "<high>" where a bound goes.
    """

    makes: Literal["weights", "screens"]
    options: Mapping[str, Any]

    def fill(self, bounds: Bounds) -> dict[str, Any]:
        """Put these bounds in the slots."""
        return _filled(self.options, bounds)


@dataclass(frozen=True)
class Profile:
    """A framework as far as it is known.

    Attributes:
        name: as users write it; `aliases`: other names, and forks with its options.
        version: what was read and run.
        known: versions that the same holds for.
        section: where its options stand in a configuration; "" for the top.
        options: what it takes.
        conventions: see there.
        compose: options, those given over the defaults, to a reading.
        words: its meanings of words that others use too, and its presets.
        quirks: what our plans do not do.
        metrics: what it logs.
        templates: for finding its nearest option to someone else's.
        markers: texts that only a launch script of this framework has in it.
        sampling: of which laws its two log-probs are.
        bare_flags: whether a flag of its command line takes no value.
    """

    name: str
    version: str
    section: str
    options: tuple[Option, ...]
    conventions: Conventions
    compose: Callable[[Options], Reading] = field(repr=False)
    words: tuple[Word, ...]
    quirks: tuple[Quirk, ...]
    metrics: tuple[Metric, ...]
    templates: tuple[Template, ...] = ()
    aliases: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    bare_flags: bool = False

    def given(self, options: Mapping[str, Any]) -> Options:
        """Put options over the defaults; those of the framework's section are lifted out of it."""
        section = self.section.rpartition(".")[2]
        flat = dict(options)
        if section in flat and isinstance(flat[section], (Mapping, type(None))):
            flat |= flat.pop(section) or {}
        defaults = {o.name: o.default for o in self.options}
        return Options(self.name, flat, defaults, {o.name: o.values for o in self.options})

    def read(self, options: Mapping[str, Any]) -> Reading:
        """Read what options compute; those not given are the framework's defaults.

        Raises:
            RefusedError: if the framework refuses them, or if a value is none that is known.
        """
        given = self.given(options)
        for option in self.options:
            if option.name in given:
                self._check(option, given[option.name])
        try:
            reading = self.compose(given)
        except TypeError:  # of a number that was switched off where the framework has no such value
            off = [o.name for o in self.options if o.default is not None and o.name in given and given[o.name] is None]
            if not off:
                raise
            raise RefusedError(
                f"{self.name}: {', '.join(off)} must be a number, got null\nhint: leave it out for its default."
            ) from None
        told = [f"{o.name}={given[o.name]}: {n}" for o in self.options if (n := _note(o, given))]
        return replace(reading, notes=(*reading.notes, *told)) if told else reading

    def _check(self, option: Option, value: Any) -> None:
        """Refuse a value that is none of the option's."""
        if value is None:
            if option.kind == "word" and option.default is not None:
                raise unknown_word(self.name, option.name, value, option.values)
            return
        if str(value) in option.was:
            return
        if option.kind == "word" and value not in option.values:
            raise unknown_word(self.name, option.name, value, option.values, option.default is None)
        if option.kind == "flag" and not isinstance(value, bool):
            raise RefusedError(f"{self.name}: {option.name} must be true or false, got {value!r}\nhint: {option.says}")
        if option.kind == "number" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise RefusedError(f"{self.name}: {option.name} must be a number, got {value!r}\nhint: {option.says}")


def _note(option: Option, given: Options) -> str:
    value = given.get(option.name)
    return option.notes.get(value, "") if isinstance(value, str) else ""


def read_profile(
    name: str,
    compose: Callable[[Options], Reading],
    quirks: Iterable[Apply] = (),
    equals: Mapping[str, Equal] | None = None,
    folder: Path = FOLDER,
) -> Profile:
    """Read the data file of a framework and join it with what computes.

    Args:
        name: of the file, without its ending.
        compose: options to a reading.
        quirks: switches of this framework alone, named as their quirks.
        equals: metrics of this framework alone, by the name that the data file calls them by.
        folder: where the file is.

    Raises:
        ValueError: if something of the file is missing, unknown or of another type, or if a function has no entry; the
            message names the file and the key.
        ModuleNotFoundError: on Python 3.10, which reads no TOML.
    """
    try:
        import tomllib
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "rosetta: profiles are TOML, which needs Python 3.11\nhint: use a newer Python"
        ) from None
    path = folder / f"{name}.toml"
    try:
        top = _Table(str(path), "", _extended(tomllib.loads(path.read_text(encoding="utf-8")), folder, tomllib.loads))
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"{path}: is not TOML: {e}\nhint: {_FORM}") from None
    options = tuple(_option(name, t) for name, t in top.tables("options"))
    metrics = tuple(_metrics(top, equals or {}))
    profile = Profile(
        name=top.text("name"),
        version=top.text("version"),
        section=top.text("section"),
        options=options,
        conventions=_conventions(top),
        compose=compose,
        words=(*_words(top, options, metrics), *_presets(top, options)),
        quirks=tuple(_quirks(top, {f.__name__: f for f in quirks})),
        metrics=metrics,
        templates=tuple(_templates(top, options)),
        aliases=top.texts("aliases"),
        known=top.texts("known"),
        markers=top.texts("markers"),
        bare_flags=top.take("bare_flags", bool, "true or false", False),
        sampling=_sampling(top, options),
    )
    for option in options:
        if option.values and option.default is not None and option.default not in option.values:
            raise top.error(f"options.{option.name}.default", f"{option.default!r} is not of its values", _FORM)
    top.end()
    return profile


def _extended(data: dict[str, Any], folder: Path, loads: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Put the tables of a data file over those of the one that it extends, if it does."""
    base = data.pop("extends", None)
    if base is None:
        return data
    under = loads((folder / f"{base}.toml").read_text(encoding="utf-8"))
    for key, value in data.items():
        both = isinstance(value, dict) and isinstance(under.get(key), dict)
        under[key] = {**under[key], **value} if both else value
    return under


_FORM = "see reweigh/rosetta/profile.py for its form"


class _Table:
    """A table of a data file that knows where it stands and which of its keys were asked for."""

    def __init__(self, file: str, path: str, values: Mapping[str, Any]) -> None:
        self.file, self.path, self.values = file, path, values
        self.asked: dict[str, None] = {}
        self.inner: list[_Table] = []

    def error(self, key: str, says: str, hint: str) -> ValueError:
        return ValueError(f"{self.file}: {self.path}{key}: {says}\nhint: {hint}")

    def take(self, key: str, kind: type, told: str, otherwise: Any = None) -> Any:
        """A value of this type; it has to be there if there is no `otherwise`."""
        self.asked[key] = None
        value = self.values.get(key, otherwise)
        if value is None:
            raise self.error(key, "is missing", f"give {told}")
        if not isinstance(value, kind):
            raise self.error(key, f"must be {told}, got {value!r}", _FORM)
        return value

    def text(self, key: str, otherwise: str | None = None) -> str:
        return self.take(key, str, "a text", otherwise)

    def one_of(self, key: str, known: tuple[_T, ...], otherwise: _T) -> _T:
        """One of these words."""
        value = self.take(key, str, "a text", otherwise)
        if value not in known:
            raise self.error(key, f"must be one of {', '.join(map(str, known))}, got {value!r}", _FORM)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of texts, empty if it is not there."""
        values = self.take(key, list, "an array of texts", [])
        for v in values:
            if not isinstance(v, str):
                raise self.error(key, f"must be an array of texts, got {v!r} in it", "put each in quotes")
        return tuple(values)

    def anything(self, key: str) -> Any:
        """A value of any type, None if it is not there."""
        self.asked[key] = None
        return _settled(self.values.get(key))

    def table(self, key: str, otherwise: Mapping[str, Any] | None = None) -> "_Table":
        self.inner.append(_Table(self.file, f"{self.path}{key}.", self.take(key, dict, "a table", otherwise)))
        return self.inner[-1]

    def tables(self, key: str) -> Iterator[tuple[str, "_Table"]]:
        """Each table of a table of tables, with its key; none if it is not there."""
        outer = self.table(key, {})
        return ((k, outer.table(k)) for k in outer.values)

    def options(self, key: str, known: Iterable[Option]) -> dict[str, Any]:
        """Options of the framework as they stand; where one takes words, each must be its own."""
        table, by_name = self.table(key), {o.name: o for o in known}
        for name, value in table.values.items():
            table.asked[name] = None
            if name not in by_name:
                raise table.error(name, "is no option of the framework", _like(name, by_name))
            words = by_name[name].values
            for v in _each(value) if words else ():
                if v not in words:
                    raise table.error(name, f"does not take {v!r}", _like(str(v), words))
        return dict(table.values)

    def end(self) -> None:
        """Refuse keys that nobody asked for, here and inside."""
        for key in self.values:
            if key not in self.asked:
                raise self.error(key, "is not known", _like(key, self.asked))
        for table in self.inner:
            table.end()


_KINDS: tuple[Kind, ...] = ("flag", "number", "word", "any")
_LOG_PROBS: tuple[_LogProbs, ...] = ("processed", "raw", "unknown")
_ROLES: tuple[Role, ...] = ("weight", "loss", "sampling", "switch")


def _option(name: str, t: _Table) -> Option:
    default, told = t.anything("default"), t.values.get("values", [])
    if isinstance(told, dict):
        table = t.table("values")
        words, notes = tuple(table.values), {w: table.text(w) for w in table.values}
    else:
        words, notes = t.texts("values"), {}
    guess: Kind = "word" if words else "flag" if isinstance(default, bool) else "any"
    guess = "number" if guess == "any" and isinstance(default, (int, float)) else guess
    was = t.table("was", {})
    return Option(
        name,
        default,
        t.text("says"),
        words,
        {w: n for w, n in notes.items() if n},
        t.one_of("kind", _KINDS, guess),
        t.one_of("role", _ROLES, "weight"),
        t.texts("at"),
        t.text("former", ""),
        t.text("now", ""),
        {w: was.text(w) for w in was.values},
        t.text("unless", ""),
    )


def _sampling(top: _Table, options: Iterable[Option]) -> Sampling:
    if "sampling" not in top.values:
        return Sampling()
    t, names = top.table("sampling"), [o.name for o in options]
    same = t.text("same", "")
    if same and same not in names:
        raise t.error("same", f"{same!r} is no option of the framework", _like(same, names))
    logprobs: _LogProbs = t.one_of("logprobs", _LOG_PROBS, _LOG_PROBS[-1])
    return Sampling(logprobs, t.take("temperature", bool, "true or false", True), same, t.text("says", ""))


def _conventions(top: _Table) -> Conventions:
    table = top.table("conventions")
    return Conventions(**{f.name: table.text(f.name) for f in fields(Conventions)})


def _words(top: _Table, options: Iterable[Option], metrics: Iterable[Metric]) -> Iterator[Word]:
    names = [n for m in metrics for n in m.names]
    for word, t in top.tables("words"):
        metric = t.text("metric", "")
        if metric and metric not in names:
            raise t.error("metric", f"no metric {metric!r}", _like(metric, names))
        yield Word(
            word, t.text("says"), _settled(t.options("options", options)) if "options" in t.values else None, metric
        )


def _presets(top: _Table, options: Iterable[Option]) -> Iterator[Word]:
    presets = top.table("presets", {})
    return (Word(name, "a preset", _settled(presets.options(name, options))) for name in presets.values)


def _quirks(top: _Table, own: Mapping[str, Apply]) -> Iterator[Quirk]:
    quirks = top.table("quirks")
    for name in quirks.values:
        yield Quirk(name, quirks.text(name), _function(quirks, name, name, own, SWITCHES))
    _all_used(top, "quirks", own, quirks.values)


def _metrics(top: _Table, own: Mapping[str, Equal]) -> Iterator[Metric]:
    used: list[str] = []
    for name, t in top.tables("metrics"):
        told = t.text("equal", "")
        equal = _function(t, "equal", told, own, EQUALS) if told else None
        used.append(told)
        yield Metric((name, *t.texts("also")), equal, t.text("says"))
    _all_used(top, "metrics", own, used)


def _templates(top: _Table, options: Iterable[Option]) -> Iterator[Template]:
    for i, row in enumerate(top.take("templates", list, "an array of tables", [])):
        t = _Table(top.file, f"templates[{i}].", row)
        makes = t.text("makes")
        if makes not in ("weights", "screens"):
            raise t.error("makes", f"must be weights or screens, got {makes!r}", _FORM)
        for alternative in _each(t.options("options", options)):
            for slot in _slots(alternative):
                if slot not in _SLOTS:
                    raise t.error("options", f"no slot {slot!r}", ", ".join(_SLOTS))
            yield Template(makes, alternative)
        t.end()


def _function(table: _Table, key: str, name: str, own: Mapping[str, Any], shared: Mapping[str, Any]) -> Any:
    """The function that a data file names: the framework's own before a shared one."""
    known = {**shared, **own}
    if name not in known:
        raise table.error(key, f"nothing computes {name!r}", _like(name, known))
    return known[name]


def _all_used(top: _Table, key: str, own: Iterable[str], used: Iterable[str]) -> None:
    for name in own:
        if name not in used:
            raise top.error(key, f"nothing names {name!r}, which the module has", "name it, or delete the function")


def _each(value: Any) -> list[Any]:
    """Each alternative of a value in which `{ any = [...] }` stands for several, in the order of the keys."""
    if isinstance(value, dict):
        table = cast("dict[str, Any]", value)
        if [*table] == ["any"]:
            return table["any"]
        return [dict(zip(table, values, strict=True)) for values in product(*map(_each, table.values()))]
    if isinstance(value, list):
        return [list(values) for values in product(*map(_each, cast("list[Any]", value)))]
    return [value]


def _filled(value: Any, bounds: Bounds) -> Any:
    if isinstance(value, dict):
        return {k: _filled(v, bounds) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_filled(v, bounds) for v in cast("list[Any]", value)]
    return _SLOTS[value](bounds) if value in _SLOTS else value


def _slots(value: Any) -> Iterator[str]:
    """Each text in which something stands in angle brackets."""
    if isinstance(value, (dict, list)):
        inner = cast("dict[str, Any]", value).values() if isinstance(value, dict) else cast("list[Any]", value)
        for v in inner:
            yield from _slots(v)
    elif isinstance(value, str) and "<" in value:
        yield value


def _settled(value: Any) -> Any:
    """A value in which arrays of numbers or texts are tuples, as Python's own options have them."""
    if isinstance(value, dict):
        return {k: _settled(v) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        values = cast("list[Any]", value)
        return [_settled(v) for v in values] if any(isinstance(v, dict) for v in values) else tuple(values)
    return value


def _like(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, 3, 0.5)
    return f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(known)}"
