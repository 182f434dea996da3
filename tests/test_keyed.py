from hypothesis import given, settings
from hypothesis import strategies as st

from openfino.keyed import keyed_generator, keyed_seed

keys = st.lists(st.integers(0, 2**40), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(keys, keys)
def test_equal_keys_draw_equal_numbers_and_others_do_not(first, second):
    same = first == second
    assert (keyed_seed(*first) == keyed_seed(*second)) == same
    draws = [keyed_generator(*key).random(4).tolist() for key in (first, second)]
    assert (draws[0] == draws[1]) == same


def test_seeds_fit_torch():
    assert all(0 <= keyed_seed(number) < 2**63 for number in range(200))
