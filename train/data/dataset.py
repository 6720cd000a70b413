"""Rows and batches: texts with their views and sentence pairs, and how they are padded."""

import numpy as np
import torch

from modeling_magnet.encoding_magnet import padded

from ..views import IGNORE, SpecialTokens, sample_view
from .blocks import Text
from .pairs import PairDeck


class MagnetDataset(torch.utils.data.Dataset):
    """
    Texts, each with its view and its sentence pairs. Item i of epoch e depends only on (seed, e, i), so a resumed run
    sees the same items as an uninterrupted one, for any number of workers or processes.
    """

    def __init__(
        self, texts: list[Text], pairs: PairDeck, view_settings, tokens: SpecialTokens, pairs_per_row: int, seed: int
    ):
        self.texts, self.pairs, self.view_settings, self.tokens = texts, pairs, view_settings, tokens
        self.pairs_per_row, self.seed = pairs_per_row if len(pairs) else 0, seed
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # shared with persistent workers

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict:
        epoch = self.epoch
        rng = np.random.default_rng((self.seed, epoch, index))
        text = self.texts[index]
        view = sample_view(text.ids, text.sentence_starts, self.view_settings, self.tokens, rng)
        places = range(index * self.pairs_per_row, (index + 1) * self.pairs_per_row)
        return {"view": view, "pairs": [self.pairs.deal(epoch, place) for place in places], "row": index}

    def origin(self, row: int) -> str:
        """The location of a row's text: "texts.txt:17"."""
        return self.texts[row].origin or f"row {row}"


def check_rows(dataset: MagnetDataset, args) -> None:
    """
    Rejects fewer rows than one batch: the run would silently end after 0 steps.

    Raises:
        `ValueError` naming rows and batch size.
    """
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and len(dataset) < batch:
        processes = f" in each of {args.world_size} processes" if args.world_size > 1 else ""
        raise ValueError(
            f"per_device_train_batch_size={args.per_device_train_batch_size}: {len(dataset)} rows fill no batch{processes}, so "
            "nothing would be trained. Lower it, or give more texts."
        )


class MagnetCollator:
    """
    Pads views to (B, L) and a batch's sentences to (2 P, S): first all anchors, then all positives.

    `text_rows` (B,) and `pair_rows` (P,) number the rows and pairs of the batch. Pairs with equal `pair_ids` (P,)
    share a text and are not negatives of each other.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        padding = {"input_ids": self.pad_token_id, "position_ids": 0, "span_ids": 0}
        padding |= {"mntp_labels": IGNORE, "msg_labels": IGNORE}
        batch = {"text_rows": torch.tensor([item["row"] for item in items])}
        for name, value in padding.items():
            batch[name], mask = padded([getattr(item["view"], name) for item in items], value=value)
        batch["attention_mask"] = mask
        pairs = [pair for item in items for pair in item["pairs"]]
        if pairs:
            sentences = [pair.anchor for pair in pairs] + [pair.positive for pair in pairs]
            batch["pair_rows"] = torch.tensor([pair.row for pair in pairs])
            batch["pair_ids"] = torch.tensor([pair.group for pair in pairs])
            batch["pair_input_ids"], batch["pair_attention_mask"] = padded(sentences, value=self.pad_token_id)
        return batch
