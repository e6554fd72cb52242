"""Encoders against a real tokenizer built here: ids, labels, loss masks, truncation counts, fingerprints."""

import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from privtune.device.data.encode import encode_causal_lm, encode_classification
from privtune.device.data.records import Columns, Record, Records
from privtune.shared.errors import DataInvalid

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]", "a", "b", "c", "d", "e", "\n"]
VOCABULARY = {word: number for number, word in enumerate(WORDS)}


def word_tokenizer(*, special: bool) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    if special:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    extra = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if special else {"eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", **extra)


class WithoutRust:
    """The same tokenizer with the answers of a slow one: without `encodings`."""

    def __init__(self, inner: PreTrainedTokenizerFast) -> None:
        self.inner = inner
        self.eos_token_id = inner.eos_token_id

    def __call__(self, *args, **kwargs):
        batch = self.inner(*args, **kwargs)
        batch._encodings = None
        return batch


def labelled(*rows: tuple[str, str], pair: bool = False) -> Records:
    items = tuple(
        Record(number=n, text=text, text2="b c" if pair else None, label=label)
        for n, (text, label) in enumerate(rows, start=2)
    )
    columns = Columns(text="text", text2="other" if pair else None, label="label")
    return Records(source="d.csv", unit="line", columns=columns, items=items)


def passages(*rows: tuple[str | None, str]) -> Records:
    items = tuple(Record(number=n, prompt=prompt, text=text) for n, (prompt, text) in enumerate(rows, start=1))
    with_prompt = rows[0][0] is not None
    columns = Columns(prompt="prompt", completion="completion") if with_prompt else Columns(text="text")
    return Records(source="d.jsonl", unit="line", columns=columns, items=items)


def ids_of(dataset) -> list[list[int]]:
    return [ids_T.tolist() for ids_T in dataset.ids]


@pytest.mark.parametrize("wrap", [lambda t: t, WithoutRust])
def test_classification_ids_labels_and_truncation(wrap):
    tokenizer = wrap(word_tokenizer(special=True))
    data = encode_classification(labelled(("a b", "10"), ("a b c", "9"), ("a b c d", "10")), tokenizer, 5)
    assert ids_of(data) == [[2, 5, 6, 3], [2, 5, 6, 7, 3], [2, 5, 6, 7, 3]]
    assert data.label_names == ("9", "10")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0, 1]
    assert data.truncated == 1  # the second is exactly as long as allowed
    assert data.lengths.tolist() == [4, 5, 5]
    assert {ids_T.dtype for ids_T in data.ids} == {np.dtype(np.int32)}
    assert len(data) == 3


def test_pairs_carry_both_texts():
    data = encode_classification(labelled(("a", "x"), ("d", "y"), pair=True), word_tokenizer(special=True), 16)
    assert ids_of(data)[0] == [2, 5, 3, 6, 7, 3]


def test_validation_takes_the_names_of_training():
    tokenizer = word_tokenizer(special=True)
    data = encode_classification(labelled(("a", "y")), tokenizer, 8, label_names=("x", "y"))
    assert data.labels is not None
    assert data.labels.tolist() == [1]
    with pytest.raises(DataInvalid, match=r'd\.csv, line 2, column "label"'):
        encode_classification(labelled(("a", "z")), tokenizer, 8, label_names=("x", "y"))


def test_one_label_only_and_a_text_without_tokens():
    with pytest.raises(DataInvalid, match="same label"):
        encode_classification(labelled(("a", "x"), ("b", "x")), word_tokenizer(special=True), 8)
    with pytest.raises(DataInvalid, match=r'd\.csv, line 3, column "text": the tokenizer makes no token'):
        encode_classification(labelled(("a", "x"), (" ", "y")), word_tokenizer(special=False), 8)


def test_passages_predict_every_token_but_the_first():
    data = encode_causal_lm(passages((None, "a b c"), (None, "d")), word_tokenizer(special=False), 8)
    assert ids_of(data) == [[5, 6, 7, 4], [8, 4]]
    assert data.loss_masks is not None
    assert [mask.tolist() for mask in data.loss_masks] == [[False, True, True, True], [False, True]]
    assert data.labels is None
    assert data.label_names == ()


def test_completions_alone_are_predicted_and_joined_by_a_line_break():
    data = encode_causal_lm(passages(("a b ", "c d"), ("a \n", "e")), word_tokenizer(special=False), 8)
    assert ids_of(data)[0] == [5, 6, 7, 8, 4]
    assert data.loss_masks is not None
    assert data.loss_masks[0].tolist() == [False, False, True, True, True]
    joined = encode_causal_lm(passages(("a ", "c"), ("\n", "e")), word_tokenizer(special=False), 8)
    assert ids_of(joined) == [[5, 7, 4], [10, 9, 4]]
    broken = encode_causal_lm(passages(("a", "c"), ("a", " c")), word_tokenizer(special=False), 8)
    assert ids_of(broken)[0] != ids_of(broken)[1]  # "a\n" + "c" against "a" + " c"
    assert ids_of(broken)[1] == [5, 7, 4]


def test_truncation_of_completions_counts_and_drops():
    rows = (("a b c", "d e"), ("a b c d e", "a"), ("a", "b"))
    data = encode_causal_lm(
        passages(*((prompt + " ", text) for prompt, text in rows)), word_tokenizer(special=False), 4
    )
    assert ids_of(data) == [[5, 6, 7, 8], [5, 6, 4]]
    assert (data.truncated, data.dropped) == (2, 1)
    assert data.places == (0, 2), "the records that are left know which they were"
    assert data.pick(np.array([1, 0])).places == (2, 0)
    with pytest.raises(DataInvalid, match=r"d\.jsonl: no record has anything left to predict within 2 tokens"):
        encode_causal_lm(passages(("a b c ", "d")), word_tokenizer(special=False), 2)


def test_fingerprints_depend_on_ids_and_labels_alone():
    tokenizer = word_tokenizer(special=True)
    one = encode_classification(labelled(("a b", "x"), ("c", "y")), tokenizer, 8)
    same = encode_classification(labelled(("a b", "x"), ("c", "y")), tokenizer, 8)
    other_text = encode_classification(labelled(("a d", "x"), ("c", "y")), tokenizer, 8)
    other_label = encode_classification(labelled(("a b", "y"), ("c", "x")), tokenizer, 8)
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, other_text.fingerprint, other_label.fingerprint}) == 3


def test_more_records_than_one_call_of_the_tokenizer():
    rows = [("a" if n % 2 else "b c", str(n % 2)) for n in range(2500)]
    data = encode_classification(labelled(*rows), word_tokenizer(special=True), 8)
    assert data.labels is not None
    assert [len(ids) - 2 for ids in ids_of(data)] == [1 if n % 2 else 2 for n in range(2500)]


def test_this_room_is_free_of_torch():
    code = (
        "import sys, privtune.device.data.encode, privtune.device.data.source;"
        "print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False False"
