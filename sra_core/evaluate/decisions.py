"""Which token comes next, and whether rounding could have changed the choice.

Every choice is an argmax: greedy decoding over the logits, sampling over logits / temperature plus Gumbel noise (which
draws from the softmax exactly). An argmax whose winner leads by more than the rounding error of the logits is the same
for every batch that the text could have been in; the few that are closer are named, so that the caller can settle them
in one fixed way.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from sra_core.errors import EvaluationError

__all__ = ["Sampling", "choose", "text_generator"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Smallest set of likeliest tokens that holds this probability; 1 keeps them all.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def text_generator(seed: int, example: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers of one example: a function of the seed and the example's id alone."""
    digest = hashlib.sha256(f"{seed}\0{example}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def choose(
    logits: Tensor, noise: Tensor | None, sampling: Sampling, margin: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Next token of each row.

    Args:
        logits: (B, V) float32.
        noise: (B, V) draws from the uniform distribution on [0, 1); unused when greedy.
        sampling: Temperature and nucleus.
        margin: (B,) logits closer than this may swap places in another batch: twice their largest error or more. Unset
            takes the logits as exact.

    Returns:
        ``(tokens, safe)``, both (B,): a row is safe when no change of its logits within ``margin`` changes its token.

    Raises:
        EvaluationError: A logit is not a number.
    """
    if torch.isnan(logits.amax(-1)).any():
        raise EvaluationError("the model's logits are not numbers (NaN)", "check its weights, or evaluate in float32")
    if margin is None:
        margin = logits.new_zeros(len(logits))
    if sampling.greedy:
        return _argmax(logits, torch.ones_like(logits, dtype=torch.bool), margin)
    assert noise is not None
    # A draw of exactly 0 gives -inf: that token is not taken.
    gumbel = -noise.log().neg_().log_()
    scaled, slack = logits / sampling.temperature, margin / sampling.temperature
    surely, maybe = _nucleus(scaled, sampling.top_p, slack[:, None])
    return _argmax(scaled + torch.where(maybe, gumbel, -torch.inf), surely, slack)


def _argmax(scores: Tensor, surely: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """Winners, and whether each is surely a candidate and leads all others by the margin."""
    tokens = scores.argmax(-1)
    best = scores.gather(-1, tokens[:, None])
    runner_up = scores.scatter(-1, tokens[:, None], -torch.inf).amax(-1)
    return tokens, surely.gather(-1, tokens[:, None])[:, 0] & (best[:, 0] - runner_up >= margin)


def _nucleus(scaled: Tensor, top_p: float, slack: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that are in the nucleus whatever a change within ``slack`` does, and those that may be: (B, V) bool each.

    A token is in when the tokens likelier than it hold less than ``top_p`` together.
    """
    if top_p >= 1:
        everything = torch.ones_like(scaled, dtype=torch.bool)
        return everything, everything
    ordered, order = scaled.double().sort(dim=-1, descending=True, stable=True)
    shares = ordered.softmax(-1)
    before = torch.nn.functional.pad(shares.cumsum(-1), (1, 0))
    # tokens ahead by more than the slack stay ahead; those within it, on either side, may come before
    ahead = torch.searchsorted(-ordered, -ordered - slack, right=False)
    near = torch.searchsorted(-ordered, -ordered + slack, right=True)
    # Each logit moves by half the slack at most, so that no sum of shares changes by more than this.
    drift = slack.double().expm1()
    least = before.gather(-1, ahead) - drift
    # The token itself is among those near it.
    most = before.gather(-1, near) - shares + drift
    surely, maybe = most < top_p, least < top_p
    return surely.gather(-1, order.argsort(-1)), maybe.gather(-1, order.argsort(-1))
