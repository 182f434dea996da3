from hypothesis import given, settings
from hypothesis import strategies as st

from openfino.keyed import keyed_generator, keyed_seed

part = st.integers(0, 3) | st.integers(0, 2**32 - 1)
pairs = st.lists(st.tuples(part, part), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_equal_keys_draw_equal_numbers_and_others_of_their_length_do_not(pairs):
    first, second = zip(*pairs, strict=True)
    same = first == second
    assert (keyed_seed(*first) == keyed_seed(*second)) == same
    draws = [keyed_generator(*key).random(4).tolist() for key in (first, second)]
    assert (draws[0] == draws[1]) == same


def test_seeds_fit_torch():
    assert all(0 <= keyed_seed(number) < 2**63 for number in range(200))
