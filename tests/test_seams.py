"""Where a text is cut into pieces for the model, no character of it is lost, doubled or invented, whatever merges."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LogitsProcessor, PreTrainedTokenizerFast

from modeling_magnet.gaps_magnet import Gap, read_document
from modeling_magnet.seams_magnet import SENTINELS, context_ids

PIECES = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    " x",
    "\n x",
    "\r\n",
    ".x",
    "...",
    "bc",
    "a",
    "ab",
    "\t",
    "é",
    "🎉",
    "<s>",
    "</s>",
]


@pytest.fixture(scope="module")
def greedy_merger():
    """A byte-level tokenizer that merges every sentinel with what may follow it, and hides spaces from its offsets."""
    merges = [
        ("Ċ", "Ċ"),
        ("Ċ", "Ġ"),
        (".", "Ċ"),
        (".", "."),
        (".", "x"),
        ("a", "b"),
        ("a", "Ġ"),
        ("Ġ", "Ġ"),
        ("Ġ", "x"),
    ]
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_every_sentinel_of_this_tokenizer_merges(greedy_merger):
    for sentinel, follower in zip(SENTINELS, (" ", "x", "b"), strict=True):
        assert len(greedy_merger(sentinel + follower)["input_ids"]) == 1


@pytest.mark.parametrize("right", PIECES)
@pytest.mark.parametrize("middle", PIECES[1:])
def test_pieces_are_encoded_whole(greedy_merger, middle, right):
    document = read_document(f"x<|gap|>{middle}<|gap|>{right}", "<|gap|>", Gap(4), {}, 0)
    left_ids, middle_ids, right_ids = context_ids(document, greedy_merger)
    decoded = [greedy_merger.decode(ids) for ids in (left_ids[1:], middle_ids, right_ids)]
    healed = middle if middle == " " else middle.removesuffix(" ")  # a word's token brings the space before it
    assert left_ids[0] == greedy_merger.bos_token_id
    assert decoded == ["x", healed, right]
    assert not {0, 1} & {*left_ids[1:], *middle_ids, *right_ids}


class Write(LogitsProcessor):
    """Makes the model write these tokens."""

    def __init__(self, tokens):
        self.tokens = iter(tokens)

    def __call__(self, input_ids, scores):
        written = torch.full_like(scores, -torch.inf)
        written[:, next(self.tokens)] = 0
        return written


def infill_writing(model, tokenizer, left, tokens, right) -> str:
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert tokenizer.unk_token_id not in ids
    return model.infill(f"{left}<|gap|>{right}", tokenizer, length=len(ids), logits_processor=[Write(ids)])


JOINED = [  # left, the tokens written, right, the whole
    ("Tom was ", ["Ġvery"], " sad.", "Tom was very sad."),
    ("Tom was", ["Ġvery"], " sad.", "Tom was very sad."),
    ("Tom was ", ["Ġvery", "Ġ"], " sad.", "Tom was very sad."),
    ("Tom was", ["Ġvery", "Ġ"], "sad.", "Tom was very sad."),
    ("Tom was", ["Ġvery"], ".", "Tom was very."),
    ("Tom ran", ["."], "\nHe was sad.", "Tom ran.\nHe was sad."),
    ("", ["Ġvery"], " sad.", "very sad."),
    ("Tom was ", ["Ġvery"], "", "Tom was very"),
    ("Tom wa", ["s"], " sad.", "Tom was sad."),
    ("Tom was", [",", "Ġvery"], " sad.", "Tom was, very sad."),
]


@pytest.mark.parametrize("left, tokens, right, whole", JOINED)
def test_byte_level_fills_join_without_a_seam(text_magnet, tokenizer, left, tokens, right, whole):
    assert infill_writing(text_magnet(), tokenizer, left, tokens, right) == whole


@pytest.mark.shared
@pytest.mark.parametrize("left, tokens, right, whole", JOINED)
def test_sentencepiece_fills_join_without_a_seam(text_magnet, shared, left, tokens, right, whole):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories3M")
    tokens = [token.replace("Ġ", "▁") for token in tokens]
    assert infill_writing(text_magnet(), tokenizer, left, tokens, right) == whole
