"""tests/tools/mutants.py fits the scripts: each mutant is a valid program that differs from the script."""

import ast

import mutants


def test_mutants_are_valid_programs():
    found = [*mutants.by_rule(mutants.ROOT, every=False), *mutants.below_the_rule(mutants.ROOT)]
    texts = {script: (mutants.ROOT / f"{script}.py").read_text() for script in mutants.SCRIPTS}
    for script, _, start, end, new in found:
        text = texts[script]
        broken = text[:start] + new + text[end:]
        ast.parse(broken)
        assert broken != text
    assert {script for script, *_ in found} == set(texts)


def test_every_function_of_the_list_exists():
    """A name in FUNCTIONS that no script has would leave that function out."""
    found = set()
    for script in mutants.SCRIPTS:
        found |= mutants.functions(script, (mutants.ROOT / f"{script}.py").read_text()).keys()
    assert found == set(mutants.FUNCTIONS.split())
