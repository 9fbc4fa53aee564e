import pytest

from diffusers_xai.prompts import without, words_of


def test_words_that_stand_for_something():
    assert words_of("A woman with a red hat, smiling") == ["woman", "red", "hat", "smiling"]
    assert words_of("the fox's den; a fox") == ["fox's", "den", "fox"]
    assert words_of("of the") == []


@pytest.mark.parametrize(
    ("prompt", "word", "left"),
    [
        ("a red fox", "red", "a fox"),
        ("a fox, red, small", "red", "a fox, small"),
        ("Red fox and red hair", "red", "fox and hair"),
        ("a fox in the snow", "the snow", "a fox in"),
        ("redder than red", "red", "redder than"),
    ],
)
def test_a_prompt_without_a_word(prompt, word, left):
    assert without(prompt, word) == left


@pytest.mark.parametrize("word", ["cat", "re", " ", "a red fox"])
def test_a_word_that_is_not_in_the_prompt_or_all_of_it_is_refused(word):
    with pytest.raises(ValueError, match="words: expected"):
        without("a red fox", word)
