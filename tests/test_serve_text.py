"""Text from tokens one by one: the pieces together are what the tokenizer makes of all of them at once."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from graft.serve.answers import Text

WORDS = {"<unk>": 0, "<end>": 1, "▁a": 2, "▁b": 3, "c": 4}


def words(decoder):
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if decoder is not None:
        backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("decoder", [None, decoders.Metaspace()], ids=["spaces between", "spaces in front"])
@pytest.mark.parametrize("ids", [[2, 3, 4], [2, 0, 3], [0, 2, 3], [2, 1, 0, 1, 3, 4, 0, 2], [0, 1], [2, 3, 0]])
def test_pieces_are_the_whole_with_special_tokens_among_them(decoder, ids):
    """A tokenizer whose first word loses its space: after a special token, which is left out, a word is not the first."""
    tokenizer = words(decoder)
    text = Text(tokenizer, ())
    pieces = [text.push(number) for number in ids]
    assert "".join(pieces) + text.rest() == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_stop_text_is_found_across_a_special_token():
    text = Text(words(decoders.Metaspace()), ("a b",))
    assert "".join(text.push(number) for number in (3, 2, 0, 3, 4)) == "b "
    assert text.ended
