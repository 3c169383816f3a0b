"""BERT's tokenizer (bert-base-uncased), which LoTLIP's text tower reads with."""

from __future__ import annotations

from importlib.resources import as_file, files

from tokenizers import Encoding, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece

from longclip_lab.errors import LabError
from longclip_lab.text.base import TokenizedText, Tokenizer

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class BertTokenizer(Tokenizer):
    """WordPiece of bert-base-uncased: lower-cased, accents stripped, 30,522 tokens.

    [CLS] starts a text and [SEP] ends it. As in transformers, a special token written out in
    a text ("[SEP]") is that token, which LoTLIP's separator between sub-captions relies on.
    """

    name = "bert"

    def __init__(self) -> None:
        vocabulary = files("longclip_lab.text") / "vocabularies" / "bert-base-uncased.txt"
        with as_file(vocabulary) as path:
            self._backend = Backend(WordPiece.from_file(str(path), unk_token="[UNK]"))
        self._backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._backend.add_special_tokens(SPECIAL_TOKENS)
        self.vocab_size = self._backend.get_vocab_size()
        self.pad_id, _, self.start_id, self.end_id, _ = map(
            self._backend.token_to_id, SPECIAL_TOKENS
        )

    def _encoding(self, text: str) -> Encoding:
        try:
            return self._backend.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise LabError(f"Half a surrogate pair is no text: {text!r:.60}.") from error

    def encode(self, text: str) -> list[int]:
        """The ids of the text's word pieces. Raises LabError for half a surrogate pair."""
        return self._encoding(text).ids

    def tokenize(self, text: str) -> TokenizedText:
        """The word pieces with their characters. Raises LabError for half a surrogate pair.

        >>> BertTokenizer().tokenize("Snowfields").tokens
        ['snow', '##fields']
        """
        encoding = self._encoding(text)
        return TokenizedText(text, encoding.ids, encoding.tokens, encoding.offsets)
