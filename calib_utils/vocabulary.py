"""The text behind token ids: what each token writes, and every way to write a string.

Knows tokenizers only. Exact for byte-level BPE and for SentencePiece-style vocabularies with
byte fallback, which covers every model of the panel.
"""

import json

from calib_utils.errors import ModelFormatError, TokenizationError

MAX_SEGMENTATIONS = 20_000


class Vocabulary:
    """Bytes of every ordinary token (special tokens write nothing).

    Raises:
        ModelFormatError: a tokenizer whose decoder is of neither kind.
    """

    def __init__(self, tokenizer):
        self._bytes = _token_bytes(tokenizer)
        self._ids: dict[bytes, list[int]] = {}
        for token, piece in self._bytes.items():
            self._ids.setdefault(piece, []).append(token)
        self._longest = max(map(len, self._ids))

    def starting_with(self, text: str) -> list[int]:
        """Ids of the tokens whose text begins with `text`, ascending."""
        prefix = text.encode()
        return sorted(t for t, piece in self._bytes.items() if piece.startswith(prefix))

    def segmentations(self, text: str) -> list[tuple[int, ...]]:
        """Every token sequence that writes exactly `text`.

        Raises:
            TokenizationError: none, or more than `MAX_SEGMENTATIONS`.
        """
        target = text.encode()
        endings: list[list[tuple[int, ...]]] = [[] for _ in target] + [[()]]
        for start in range(len(target) - 1, -1, -1):
            for stop in range(start + 1, min(len(target), start + self._longest) + 1):
                for token in self._ids.get(target[start:stop], ()):
                    endings[start] += [(token, *rest) for rest in endings[stop]]
            if len(endings[start]) > MAX_SEGMENTATIONS:
                raise TokenizationError(
                    f"{text!r} has more than {MAX_SEGMENTATIONS:,} segmentations: use "
                    "tokenizations='canonical', or shorter answers"
                )
        if not endings[0]:
            raise TokenizationError(f"{text!r} cannot be written with this vocabulary")
        return endings[0]


def _token_bytes(tokenizer) -> dict[int, bytes]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str())["decoder"]) if backend else ""
    if "ByteLevel" in decoder:
        to_bytes = _byte_level
    elif "ByteFallback" in decoder or "\\u2581" in decoder:
        to_bytes = _sentencepiece
    else:
        raise ModelFormatError(
            f"cannot read the vocabulary of a {type(tokenizer).__name__} (neither byte-level nor "
            "SentencePiece): use tokenizations='canonical' and end='eos' or 'none'"
        )
    special = set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    pieces = {}
    for piece, token in tokenizer.get_vocab().items():
        if token in special or (token in added and added[token].special):
            continue
        # Added tokens are stored as plain text, not in the byte alphabet.
        pieces[token] = piece.encode() if token in added else to_bytes(piece)
    return pieces


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE uses for the 256 bytes (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_level(piece: str) -> bytes:
    if all(character in _ALPHABET for character in piece):
        return bytes(_ALPHABET[character] for character in piece)
    return piece.encode()


def _sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()
