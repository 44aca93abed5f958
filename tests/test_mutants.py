"""What a mutant is: a changed sign, norm or axis of a formula, and nothing else of the file."""

from __future__ import annotations

import pytest

import mutants

SOURCE = '''
def score(w, text):
    """A docstring - of a formula + others."""
    if w.sum(0) < 0:
        raise ValueError(f"{w - 1} " + text)
    return {formula}
'''


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("a - b", ["(a + b)"]),
        ("-w", ["(w)"]),
        ("w.abs()", ["(w).square()"]),
        ("(a * b).square()", ["(a * b).abs()"]),
        ("w.norm(dim=1)", ["(w).norm(p=1, dim=1)", "w.norm(dim=0)"]),
        ("w ** 2", ["abs(w)"]),
        ("w.mean(1)", ["w.mean(0)"]),
        ("w.std(dim=0)", ["w.std(dim=1)"]),
        ("w[k + 1] * -1", []),
        ("[w] + [w]", []),
        ("w + _SMALL", []),
    ],
)
def test_formulas_change_in_sign_norm_and_axis(tmp_path, formula, expected):
    path = tmp_path / "dummy.py"
    path.write_text(SOURCE.replace("{formula}", formula))
    found = [mutant for mutant in mutants.mutants(path) if mutant.line > 4]
    assert [mutant.after for mutant in found] == expected
    for mutant in found:
        assert mutant.source == SOURCE.replace("{formula}", formula.replace(mutant.before, mutant.after))


def test_the_draw_is_that_of_the_seed_and_reaches_short_files():
    first, again, other = (mutants.drawn(40, seed, "") for seed in (0, 0, 1))
    assert first == again != other
    assert len({mutant.file for mutant in first}) > 15
    assert len({(mutant.file, mutant.source) for mutant in first}) == 40


def test_a_file_concerns_the_methods_that_use_it():
    assert mutants.users("taylor") == ["taylor"]
    assert mutants.users("_gates") == ["l0", "obd", "obs", "sss", "vardrop"]
