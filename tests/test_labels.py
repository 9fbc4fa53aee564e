"""Labels as bits, names and numbers, written and read again."""

import pytest

from diffusers_xai.labels import attributes_of, encode_label, label_bits, label_from_bits, labels_between


NAMES = ("Bangs", "Male", "Smiling")


@pytest.mark.parametrize(
    ("label", "bits", "names"), [(0, "000", []), (3, "011", ["Male", "Smiling"]), (4, "100", ["Bangs"])]
)
def test_a_label_is_written_and_read_in_bits_and_names(label, bits, names):
    assert label_bits(label, NAMES) == bits
    assert attributes_of(label, NAMES) == names
    assert label_from_bits(bits) == label
    assert encode_label(dict.fromkeys(names, True), 8, attributes=NAMES) == label


@pytest.mark.parametrize(("label", "attributes"), [(-1, NAMES), (8, NAMES), (110, NAMES), (3, ())])
def test_a_label_that_the_attributes_do_not_make_up_is_a_number(label, attributes):
    assert label_bits(label, attributes) == str(label)
    assert attributes_of(label, attributes) == []


def test_the_labels_between_two_have_every_mix_of_what_differs():
    assert labels_between(0b001, 0b100, NAMES) == [0b001, 0b000, 0b101, 0b100]
    assert labels_between(5, 4, NAMES) == [5, 4]
    assert labels_between(7, 2, ()) == [7, 2]
