"""How work grows, in words such as `O(L log L · d + L · d²)`.

L is the length, d the width of the residual stream, N the size of a state, w that of a window; what
a configuration fixes otherwise (kernels, chunks, vocabularies, depth) is a constant.
"""

import re
from collections.abc import Mapping


# A power of each variable, the logarithm of L being one of them.
Term = Mapping[str, float]

_FACTOR = re.compile(r"(1|log|[A-Za-z])(?:\^(\d+(?:\.\d+)?)|([²³]))?")
_POWERS = {"²": 2.0, "³": 3.0}


def total(*complexities: str) -> str:
    """The complexity of all together: their terms, without those that another one outgrows.

    A term goes if another has at least its power of every variable: L · d beside L · d², and L² beside
    L² log L, but neither of L² · d and L · d².

    **Raises:** `ValueError` that names what is not a complexity.
    """
    terms: list[Term] = []
    for term in (term for complexity in complexities for term in _parse(complexity)):
        if not any(_outgrows(other, term) for other in terms):
            terms = [other for other in terms if not _outgrows(term, other)] + [term]
    powers = lambda term: [-term.get(name, 0) for name in ("L", "log", "d")]
    terms.sort(key=lambda term: (powers(term), _write(term)))
    return f"O({' + '.join(map(_write, terms))})"


def _parse(complexity: str) -> list[Term]:
    if not (complexity.startswith("O(") and complexity.endswith(")")):
        raise ValueError(_malformed(complexity))
    terms = []
    for text in complexity[2:-1].split(" + "):
        term: dict[str, float] = {}
        for factor in text.replace(" · ", " ").replace("log L", "log").split(" "):
            match = _FACTOR.fullmatch(factor)
            if match is None:
                raise ValueError(_malformed(complexity))
            name, power, sign = match.groups()
            if name != "1":
                term[name] = term.get(name, 0) + (
                    float(power) if power else _POWERS.get(sign, 1.0)
                )
        terms.append(term)
    return terms


def _outgrows(a: Term, b: Term) -> bool:
    """Whether `a` is at least `b`, up to a constant, for all sizes."""
    names = (a.keys() | b.keys()) - {"L", "log"}
    length = lambda term: (term.get("L", 0), term.get("log", 0))
    return length(a) >= length(b) and all(a.get(name, 0) >= b.get(name, 0) for name in names)


def _write(term: Term) -> str:
    others = sorted(term.keys() - {"L", "log"}, key=lambda name: (name == "d", name))
    time = " ".join(_power(name, term[name]) for name in ("L", "log") if name in term)
    return " · ".join(filter(None, [time, *(_power(name, term[name]) for name in others)])) or "1"


def _power(name: str, power: float) -> str:
    signs = {1.0: "", 2.0: "²", 3.0: "³"}
    name = "log L" if name == "log" else name
    return name + signs.get(power, f"^{power:g}")


def _malformed(complexity: str) -> str:
    return (
        "A complexity is a sum of products in big-O notation, such as 'O(L log L · d + L · d²)'. "
        f"Received {complexity!r}."
    )
