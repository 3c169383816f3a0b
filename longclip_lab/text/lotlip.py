"""How LoTLIP's text tower is fed: sub-captions between separators."""

from __future__ import annotations

from longclip_lab.text.base import TokenizedText
from longclip_lab.text.splitting import subcaption_spans
from longclip_lab.text.wordpiece import BertTokenizer


class LotlipTokenizer(BertTokenizer):
    """BERT's word pieces with [SEP] between sub-captions: [CLS] .. [SEP] .. [SEP].

    A text of several sub-captions (`split_subcaptions`: newline, "</s>", full stop) loses these
    marks; [SEP] stands for them. A text that is a single one is read as it is, full stop included,
    as the released code reads raw captions and prompts. Corner tokens have no ids here: the text
    tower puts them in after [CLS] (`longclip_lab.models.add_corner_tokens`).

    Source: LoTLIP (Wu et al., NeurIPS 2024), section 4.3, and the code of its release. That code
    also repairs encodings with ftfy and unescapes HTML, which plain BERT does not.
    """

    name = "lotlip"

    def encode(self, text: str) -> list[int]:
        """The ids of the word pieces and separators, without the frame."""
        return self.tokenize(text).ids

    def tokenize(self, text: str) -> TokenizedText:
        """The word pieces with their characters; a [SEP] has those between two sub-captions.

        Raises LabError for half a surrogate pair.

        >>> LotlipTokenizer().tokenize("A dog. It sleeps.").tokens
        ['a', 'dog', '[SEP]', 'it', 'sleeps']
        """
        parts = subcaption_spans(text)
        if len(parts) < 2:
            return super().tokenize(text)
        whole = TokenizedText(text, [], [], [])
        last = 0
        for start, end in parts:
            if whole.ids:
                whole.ids.append(self.end_id)
                whole.tokens.append("[SEP]")
                whole.spans.append((last, start))
            part = super().tokenize(text[start:end])
            whole.ids.extend(part.ids)
            whole.tokens.extend(part.tokens)
            whole.spans.extend((start + first, start + after) for first, after in part.spans)
            last = end
        return whole
