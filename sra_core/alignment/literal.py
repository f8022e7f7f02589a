"""Text stays text: what looks like a special token in an example is tokenized as the characters that it is.

A tokenizer takes `<|im_end|>` for its end of a turn wherever it stands. So the example's own ones are hidden while its
prompt is rendered, which tells them from those that the template writes, and such an example is tokenized by a twin of
the tokenizer that knows the template's special tokens under other names and has never heard of the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sra_core.alignment.tokens import FastTokenizer, backend_of, end_of_text
from sra_core.corpus import Example, Rendered, Turn, written_after

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["EndTokens", "SpecialTokens", "answer_end"]

END_TOKENS = (
    *("</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<|return|>"),
    *("<end_of_turn>", "<eos>", "<|end_of_turn|>", "<|endofturn|>", "<turn|>", "<｜end▁of▁sentence｜>", "<|eos|>"),
)
"""Ends of a text or turn in tokenizers that people use; data made for one of them often has them typed out."""
_PLANES = (0xF0000, 0x100000)
"""Code points for private use, by the ten thousands: each special token has one that stands for its characters."""
_ROOM = 0xFFF0  # of a plane's 0x10000 code points; its last two are no characters


class EndTokens:
    """The tokens that end a text, as they are found typed at the end of responses.

    Args:
        own: The ends of the run's own two models, which are among them.
    """

    def __init__(self, own: Iterable[str]) -> None:
        self._ends = tuple(sorted({*END_TOKENS, *own}, key=len, reverse=True))

    def stripped(self, text: str) -> str:
        """The text without end tokens at its end and what white space is after the first of them."""
        before = text.rstrip()
        while before.endswith(self._ends):  # by its end alone: a text may have megabytes
            text = before.removesuffix(next(end for end in self._ends if before.endswith(end)))
            before = text.rstrip()
        return text


def answer_end(tokenizer: FastTokenizer, template: str, arguments: Mapping[str, Any] | None = None) -> int:
    """The id of the token that ends an answer.

    With a chat template it is the first special token that the template writes after a response, which is not always
    the end of text (ChatML's `<|im_end|>`, Gemma's `<end_of_turn>`); the end of text under a plain one, and where the
    template writes none.

    Args:
        tokenizer: A fast tokenizer; a bare one will do for a plain template.
        template: ``plain`` or ``chat``.
        arguments: What the chat template is told beside the turns.

    Raises:
        TokenizerError: There is no end-of-text token.
        ConfigError: There is no chat template, it is broken, or it does not read an argument.
    """
    end = end_of_text(tokenizer)
    if template == "plain":
        return end
    known = _special_tokens(tokenizer)
    # A pattern takes the first alternative that fits, hence the longest first. (?!) fits nowhere; an empty one would
    # fit everywhere.
    pattern = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    found = re.search(pattern or r"(?!)", written_after(tokenizer, arguments or {}))
    return known[found[0]] if found else end


def _special_tokens(tokenizer: FastTokenizer) -> dict[str, int]:
    """The special tokens with their ids; ends of a turn are among them that were added as if they were words."""
    added = backend_of(tokenizer).get_added_tokens_decoder()
    known = {token.content: k for k, token in added.items() if token.special or token.content in END_TOKENS}
    known |= {added[k].content: k for k in tokenizer.all_special_ids if k in added}
    known.pop("", None)  # a pattern would find it everywhere
    return known


class SpecialTokens:
    """The special tokens of a tokenizer, to be found in texts and kept from being read as such."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._backend = backend_of(tokenizer)
        self._tokens = sorted(_special_tokens(tokenizer), key=lambda token: (-len(token), token))
        self._number = {token: k for k, token in enumerate(self._tokens[:_ROOM])}
        self._pattern = re.compile("|".join(map(re.escape, self._tokens)) or r"(?!)")
        self._twins: dict[int, Tokenizer] = {}

    def in_example(self, example: Example) -> bool:
        """Whether a text of the example has one."""
        return any(self._pattern.search(text) for text in example.texts())

    def rendered(self, example: Example, render: Callable[[Example], Rendered]) -> Rendered:
        """The rendering of an example that has some, with the places of its own ones."""
        texts = "".join(example.texts())
        plane = next((each for each in _PLANES if not self._private(each).search(texts)), None)
        if plane is None:  # private characters of both planes: whoever writes those, writes no special tokens
            return render(example)

        def hide(text: str) -> str:
            return self._pattern.sub(lambda found: self._stand_in(found[0], plane), text)

        hidden = render(
            replace(
                example,
                system=hide(example.system),
                history=tuple(Turn(turn.role, hide(turn.content), hide(turn.reasoning)) for turn in example.history),
                instruction=hide(example.instruction),
                context=hide(example.context),
                reasoning=hide(example.reasoning),
                tools=hide(example.tools),
                response=hide(example.response),
            )
        )
        # Stand-ins are as long as what they stand for: places in the hidden text are places in the shown one.
        places = [
            (found.start(), found.end()) for found in self._hidden(plane).finditer(hidden.prompt + hidden.response)
        ]
        prompt, response = (self._shown(text, plane) for text in (hidden.prompt, hidden.response))
        return replace(hidden, prompt=prompt, response=response, literal=tuple(places))

    def encoded(self, rendered: Rendered) -> Encoding:
        """The tokens of a rendering, of which only those that the template wrote are special.

        Offsets are whole ones, as if the tokenizer trimmed none, and what it adds to a text is not added.
        """
        text, parts, done = rendered.prompt + rendered.response, [], 0
        # As in `rendered`: private characters that somebody typed must not be the name of a special token.
        plane = next((each for each in _PLANES if not self._private(each).search(text)), _PLANES[0])
        for begin, end in [*rendered.literal, (len(text), len(text))]:
            # What the template wrote gets the names that the twin knows; what was typed stays, which it knows as text.
            between = self._pattern.sub(lambda found: self._stand_in(found[0], plane), text[done:begin])
            parts += [between, text[begin:end]]
            done = end
        if plane not in self._twins:
            self._twins[plane] = self._twin(plane)
        return self._twins[plane].encode_batch(["".join(parts)], add_special_tokens=False)[0]

    def _stand_in(self, token: str, plane: int) -> str:
        """As many private characters as the token has: offsets stay what they are."""
        return chr(plane + self._number[token]) * len(token)

    def _private(self, plane: int) -> re.Pattern[str]:
        return re.compile(f"[{chr(plane)}-{chr(plane + _ROOM)}]")

    def _hidden(self, plane: int) -> re.Pattern[str]:
        return re.compile("|".join(self._stand_in(token, plane) for token in self._tokens))

    def _shown(self, text: str, plane: int) -> str:
        return self._hidden(plane).sub(lambda found: self._tokens[ord(found[0][0]) - plane], text)

    def _twin(self, plane: int) -> Tokenizer:
        """The tokenizer with every special token renamed to its stand-in, wherever it is named, under the same id."""
        from tokenizers import Tokenizer

        # Why not `encode_special_tokens` of tokenizers: it hides the template's special tokens as well, and Unigram
        # models find `</s>` among their pieces all the same.
        state = {**json.loads(self._backend.to_str()), "post_processor": None}
        names = {token: self._stand_in(token, plane) for token in self._tokens}
        for entry in state["added_tokens"]:
            if entry["content"] in names:
                # Not normalized: it is looked for before a normalizer could change the private characters.
                entry |= {"content": names[entry["content"]], "normalized": False}
        model: dict[str, Any] = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): k for piece, k in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        if "merges" in model:
            # A merge whose tokens the vocabulary lacks is refused by tokenizers. Older files write one as a string.
            pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
            model["merges"] = [[a, b] for a, b in pairs if not names.keys() & {a, b, a + b}]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        return Tokenizer.from_str(json.dumps(state))
