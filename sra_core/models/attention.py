"""Attention as the method needs it: the row of the last real token, and texts end to end that don't see each other.

transformers looks up every model's attention function, and the one that makes its masks, by name at each call. Both
come from here: while a capture or a flat forward is open, the functions under the model's current name are wrapped.

- A capture: the function returns what it always returned and, at the mapped layers, one extra ``softmax(q_last K^T)``
  is computed from the same queries and keys. Nothing of size T x T is formed.
- A flat forward: the model sees one row of N tokens. Inside the attention function queries, keys and values are laid
  out as (B, H, T, d) and the outputs gathered back; on a CPU the function is called for each text instead. The mask is
  made for one text of T tokens: None where plain causality suffices (padding on the right can't be seen by real
  tokens), else what the architecture asks for (windows, chunks). Soft caps, sinks and grouped heads are the function's
  own affair. On CUDA in half precision torch's kernel for texts end to end takes the function's place where attention
  is plain and causal.

Shapes: B texts, T tokens of the longest, N tokens of all texts, H heads, G key heads, d width of a head.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from sra_core.errors import ModelError
from sra_core.models.layers import resolve_layer
from sra_core.models.structure import decoder_of, layer_count, layers_of, unwrap
from sra_core.models.texts import Texts

__all__ = ["FlatForward", "last_row_attention", "separate_texts"]

_VARLEN = find_spec("torch.nn.attention.varlen") is not None


@contextmanager
def last_row_attention(model: nn.Module, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Yields a dict; after each forward of ``model`` inside, it holds ``{layer: (B, T) float32 rows}``.

    A row is the attention of a text's last real token (by the 2-D ``attention_mask``; without one, all tokens are
    real), summed over the heads, zero at padding. Layers count from 1; -1 is the last. Rows carry no gradient. Works
    whatever the attention implementation, inside autograd, gradient checkpointing and PEFT; captures can be nested and
    several models can be captured at once. On exit, also after an exception, model and registry are as before.

    Source: paper section 2 (span mass).

    Raises:
        ConfigError: a layer that the model does not have.
        ModelError: a forward whose mapped layers do not attend through transformers' attention interface, one with past
            keys, or one whose mask is not (B, T).
    """
    count = layer_count(model)
    capture = _Capture(model, {resolve_layer(count, layer) for layer in layers})
    with _hooked(model, capture), _wrapped(capture.implementations, capture):
        yield capture.rows


class FlatForward:
    """One forward over texts end to end, which gradient checkpointing may repeat later.

    Args:
        model: The model.
        texts: The texts of its input.

    Attributes:
        attended: Calls of the attention function so far.
    """

    def __init__(self, model: nn.Module, texts: Texts) -> None:
        self.texts = texts
        self._elsewhere: dict[torch.device, Texts] = {}
        self.attended = 0
        self.implementations = _implementations(model, decoder_of(model).modules())

    def texts_on(self, device: torch.device) -> Texts:
        """The texts, for a layer on this device; moved once."""
        if device not in self._elsewhere:
            self._elsewhere[device] = self.texts.to(device)
        return self._elsewhere[device]

    def __call__(self, function: Callable, *args: Any) -> Any:
        """``function(*args)`` in which texts are kept apart."""
        outer = getattr(_thread, "forward", None)
        with _wrapped(self.implementations):
            _thread.forward = self
            try:
                return function(*args)
            finally:
                _thread.forward = outer


_thread = threading.local()  # .forward: the flat forward that this thread is in


@contextmanager
def separate_texts(model: nn.Module, texts: Texts) -> Iterator[FlatForward]:
    """Yields a function that calls its first argument with the others: forwards of ``model`` inside it see one row of
    all tokens, (1, N), and attend within texts alone.

    What gradient checkpointing runs again in the backward, after this context has ended, is kept apart too.
    """
    forward = FlatForward(model, texts)
    changed = [part for part in decoder_of(model).modules() if getattr(part, "gradient_checkpointing", False)]
    # A private name, and the one place: transformers' layers call it with what the backward is to run again.
    originals = [part._gradient_checkpointing_func for part in changed]

    def repeated(checkpoint: Callable) -> Callable:
        return lambda function, *args: checkpoint(partial(forward, function), *args)

    for part, original in zip(changed, originals, strict=True):
        part._gradient_checkpointing_func = repeated(original)
    try:
        yield forward
    finally:
        for part, original in zip(changed, originals, strict=True):
            part._gradient_checkpointing_func = original


class _Capture:
    """The rows of one open context, and which modules they come from."""

    def __init__(self, model: nn.Module, layers: set[int]) -> None:
        modules = layers_of(model)
        self.layers = layers
        # An attention function is handed its module and no number: by identity it is known which layer that is, and
        # that it is none of another model which attends through the same function.
        self.layer_of = {id(part): layer for layer in layers for part in modules[layer - 1].modules()}
        parts = [part for layer in layers for part in modules[layer - 1].modules()]
        self.implementations = _implementations(model, parts) if layers else set()
        self.rows: dict[int, Tensor] = {}
        self.mask: Tensor | None = None
        self.open = False  # inside a forward; a recomputation for gradient checkpointing is not one

    def record(
        self,
        module: nn.Module,
        name: str,
        query: Tensor,
        key: Tensor,
        mask: Any,
        options: dict,
        real: Tensor | None = None,
    ) -> None:
        layer = self.layer_of.get(id(module))
        if layer is None or not self.open:
            return
        if query.shape[2] != key.shape[2]:
            raise ModelError(
                f"layer {layer} attends to {key.shape[2]} keys from {query.shape[2]} tokens",
                "run whole texts, without past keys (use_cache=False)",
            )
        # Autocast would take the product of query and keys in half precision.
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            real = self.mask if real is None else real
            self.rows[layer] = _last_row(query.detach(), key.detach(), real, mask, "flash" in name, options)


def _implementations(model: nn.Module, parts: Iterable[nn.Module]) -> set[str]:
    """The names under which a model and its parts look up their attention."""
    configs = [unwrap(model).config.get_text_config(), *(part.config for part in parts if hasattr(part, "config"))]
    names = {getattr(config, "_attn_implementation", None) for config in configs}
    return {name for name in names if name}


# Hooks: which tokens are real, and when a forward runs.


@contextmanager
def _hooked(model: nn.Module, capture: _Capture) -> Iterator[None]:
    outer, decoder = unwrap(model), decoder_of(model)
    handles = []
    given: list[Tensor | None] = []  # the mask that the outer model was called with, while it runs

    def outer_begins(module: nn.Module, args: tuple, kwargs: dict) -> None:
        given[:] = [_mask_argument(module, args, kwargs)]

    def outer_ends(*_: Any) -> None:
        given.clear()

    def begins(module: nn.Module, args: tuple, kwargs: dict) -> None:
        mask = _mask_argument(module, args, kwargs)
        if mask is not None and not _is_flat(mask) and given:
            mask = given[0]  # the outer model turned it into a mask of another shape
        if mask is not None and not _is_flat(mask):
            raise ModelError("the attention mask has not the shape (B, T)", "pass 1 for real tokens and 0 for padding")
        # Before, not after: a forward that fails must not leave the rows of the one before.
        capture.rows.clear()
        capture.mask, capture.open = mask, True

    def ends(module: nn.Module, args: tuple, output: Any) -> None:
        # Called after an exception too, with no output: then rows may be missing for that reason.
        capture.open, capture.mask = False, None
        missing = sorted(capture.layers - capture.rows.keys())
        if output is not None and missing:
            raise ModelError(
                f"layers {missing} of {type(outer).__name__} gave no attention row: they do not attend through "
                "transformers' attention interface",
                "map other layers, or do without attention: set objective.weighted_pooling and objective.weighted_loss "
                "to false",
            )

    if outer is not decoder:
        handles.append(outer.register_forward_pre_hook(outer_begins, with_kwargs=True))
        handles.append(outer.register_forward_hook(outer_ends, always_call=True))
    handles.append(decoder.register_forward_pre_hook(begins, with_kwargs=True))
    handles.append(decoder.register_forward_hook(ends, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_flat(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.dim() == 2


def _mask_argument(module: nn.Module, args: tuple, kwargs: dict) -> Any:
    if "attention_mask" in kwargs:
        return kwargs["attention_mask"]
    names = list(inspect.signature(module.forward).parameters)
    position = names.index("attention_mask") if "attention_mask" in names else len(args)
    return args[position] if position < len(args) else None


# The registries: one wrapper a name, shared by all that is open, gone with the last of them.


class _Attention:
    """Stands for a model's attention function."""

    def __init__(self, name: str, original: Callable | None) -> None:
        self.name, self.original = name, original
        self.users: list[_Capture | None] = []

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kw: Any
    ) -> Any:
        # "eager" is no entry of the registry: each architecture brings its own function, found at the call
        original = self.original or _eager_of(module)
        # Of this thread: the registry is the whole process's, and another thread may run the same function padded.
        forward = getattr(_thread, "forward", None)
        if forward is not None:
            return self._within_texts(forward, original, module, (query, key, value), attention_mask, args, kw)
        self._record(module, query, key, attention_mask, kw)
        return original(module, query, key, value, attention_mask, *args, **kw)

    def _record(self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, kw: dict, real: Any = None) -> None:
        for capture in tuple(self.users):
            if capture is not None:
                capture.record(module, self.name, query, key, mask, kw, real)

    @torch.compiler.disable
    def _within_texts(
        self,
        forward: FlatForward,
        original: Callable,
        module: nn.Module,
        operands: tuple[Tensor, Tensor, Tensor],
        mask: Any,
        args: tuple,
        kw: dict[str, Any],
    ) -> tuple[Tensor, None]:
        """Each of (1, heads, N, width) and more tokens that belong to no text; (1, N, heads, width) comes back."""
        texts = forward.texts_on(operands[0].device)
        forward.attended += 1
        tokens = operands[0].shape[2]
        if any(len(each) != 1 or each.shape[2] != tokens for each in operands) or kw.get("position_bias") is not None:
            raise ModelError(f"{type(module).__name__} attends to more than the tokens given", "run it padded")
        kw = {name: value for name, value in kw.items() if name != "position_ids"}  # flash attention would cut by them
        rows = [each[0].transpose(0, 1)[: len(texts)] for each in operands]
        # a flash implementation gets its window as an option and no mask: it stays as it is
        fused = mask is None and "flash" not in self.name and not args and varlen_fits(kw, *rows)
        apart = calls_are_cheap(rows[0].device) and (mask is None or isinstance(mask, Tensor))
        if any(capture is not None and id(module) in capture.layer_of for capture in self.users):
            with torch.no_grad():  # when a layer is run again for its gradient, nothing is captured
                query, key = (texts.padded(each).transpose(1, 2) for each in rows[:2])
            self._record(module, query, key, mask, kw, texts.real)
        if fused:
            outputs = varlen_attention(texts, kw, *rows)
        elif apart:
            outputs = _each_text(texts, partial(original, module), rows, mask, args, kw)
        else:
            padded = (texts.padded(each).transpose(1, 2) for each in rows)
            outputs = texts.flat(original(module, *padded, mask, *args, **kw)[0])
        # Zeros for the tokens of no text that `_tail` adds to a batch of compiled layers.
        return torch.nn.functional.pad(outputs, (0, 0, 0, 0, 0, tokens - len(texts)))[None], None


def varlen_fits(options: dict[str, Any], query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether torch's kernel for texts end to end computes this attention: half precision on CUDA, plain causal."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and width == key.shape[-1] == value.shape[-1] <= 256
        and width % 8 == 0
        and not options.get("dropout")
        and options.get("softcap") is None
        and options.get("s_aux") is None
        and options.get("is_causal") is not False
        and _VARLEN
    )


def varlen_attention(texts: Texts, options: dict[str, Any], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(N, H, d) of each text to itself, from (N, H, d) queries and (N, G, d) keys and values."""
    from torch.nn.attention import varlen

    starts = texts.starts.to(torch.int32)
    outputs: Tensor = varlen.varlen_attn(
        query,
        key,
        value,
        starts,
        starts,
        texts.longest,
        texts.longest,
        scale=options.get("scaling"),
        window_size=(-1, 0),  # causal: nothing to the right
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return outputs


def calls_are_cheap(device: torch.device) -> bool:
    """Whether a call for each text costs less than what padding adds: on a CPU, where a call waits for no launch."""
    return device.type == "cpu"


def _each_text(
    texts: Texts, function: Callable, rows: list[Tensor], mask: Tensor | None, args: tuple, options: dict[str, Any]
) -> Tensor:
    """(N, H, d) of each text to itself, one call a text."""
    lengths = texts.lengths
    outputs = []
    for text in zip(*(each.split(lengths) for each in rows), strict=True):
        # the mask was made for the longest text; a shorter one begins as it does, at position 0
        own = None if mask is None else mask[..., : len(text[0]), : len(text[0])]
        query, key, value = (each.transpose(0, 1)[None] for each in text)
        outputs.append(function(query, key, value, own, *args, **options)[0][0])
    return torch.cat(outputs)


class _Mask:
    """Stands for the function that makes a model's masks."""

    def __init__(self, name: str, original: Callable) -> None:
        self.original = original
        self.users: list[_Capture | None] = []

    def __call__(self, *args: Any, **kw: Any) -> Any:
        forward = getattr(_thread, "forward", None)
        if forward is not None:  # transformers passes all of it by name
            longest = forward.texts.longest
            lengths = {"q_length": longest, "kv_length": longest, "q_offset": 0, "kv_offset": 0}
            # One mask serves all texts: each of them begins at position 0.
            kw |= {**lengths, "batch_size": 1, "attention_mask": None}
        return self.original(*args, **kw)


_wrappers: dict[tuple[Any, str], Any] = {}
_lock = threading.Lock()


@contextmanager
def _wrapped(names: Iterable[str], capture: _Capture | None = None) -> Iterator[None]:
    """Attention functions of these names are wrapped for a capture; without one, for a flat forward, masks too."""
    from transformers import AttentionInterface, AttentionMaskInterface

    wanted: list[tuple[Any, str, Any]] = [(AttentionInterface, name, _Attention) for name in sorted(names)]
    if capture is None:
        known = AttentionMaskInterface._global_mapping
        wanted += [(AttentionMaskInterface, name, _Mask) for name in sorted(names) if name in known]
    entered = []
    try:
        for interface, name, kind in wanted:
            _enter(interface, name, kind, capture)
            entered.append((interface, name))
        yield
    finally:
        for interface, name in entered:
            _leave(interface, name, capture)


def _enter(interface: Any, name: str, kind: Any, user: _Capture | None) -> None:
    with _lock:
        if (interface, name) not in _wrappers:
            wrapper = _wrappers[interface, name] = kind(name, interface._global_mapping.get(name))
            interface.register(name, wrapper)
        _wrappers[interface, name].users.append(user)


def _leave(interface: Any, name: str, user: _Capture | None) -> None:
    with _lock:
        wrapper = _wrappers[interface, name]
        wrapper.users.remove(user)
        if wrapper.users:
            return
        del _wrappers[interface, name]
        if interface._global_mapping.get(name) is not wrapper:
            return  # someone registered another function meanwhile: it is theirs to keep
        if wrapper.original is None:
            del interface._global_mapping[name]
        else:
            interface.register(name, wrapper.original)


def _eager_of(module: nn.Module) -> Callable:
    for kind in type(module).__mro__:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    raise ModelError(f"{type(module).__name__} has no eager attention of its own", "load the model with SDPA attention")


# The row itself.


def _last_row(
    query: Tensor, key: Tensor, real: Tensor | None, mask: Any, flash: bool, options: dict[str, Any]
) -> Tensor:
    """(B, H, T, d) queries and (B, G, T, d) keys to (B, T) float32: heads summed, the last real token's attention."""
    batch, heads, tokens, width = query.shape
    position = torch.arange(tokens, device=query.device)
    real = torch.ones(batch, tokens, device=query.device) if real is None else real.to(query.device)
    # Wherever the padding is, on the left too.
    last = (real.bool() * position).amax(-1)  # (B,)
    each = torch.arange(batch, device=query.device)
    scaling = options.get("scaling")
    scaling = width**-0.5 if scaling is None else scaling
    kind = torch.promote_types(query.dtype, torch.float32)
    # Grouped heads: those that share a key head lie side by side, as transformers' repeat_kv has them.
    latest = query[each, :, last].to(kind).view(batch, key.shape[1], -1, width)
    scores = torch.einsum("bghd,bgtd->bght", latest, key.to(kind)).reshape(batch, heads, tokens) * scaling
    if (softcap := options.get("softcap")) is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if (bias := options.get("position_bias")) is not None:
        scores = scores + bias.expand(batch, -1, tokens, -1)[each, :, last, :tokens]
    allowed = real.bool() & (position <= last[:, None])
    if flash and options.get("sliding_window") is not None:  # elsewhere the mask knows the window
        allowed = allowed & (position > last[:, None] - options["sliding_window"])
    scores = _masked(scores, mask, each, last)
    # The lowest number, not -inf: a text without real tokens would be NaN. Its row is made 0 below.
    scores = scores.masked_fill(~allowed[:, None], torch.finfo(kind).min)
    if (sinks := options.get("s_aux")) is not None:  # a learned logit a head that takes attention and gives nothing
        scores = torch.cat([scores, sinks.to(kind).view(1, heads, 1).expand(batch, -1, -1)], -1)
    rows = scores.softmax(-1)[..., :tokens].sum(1)
    return (rows * allowed).float()


def _masked(scores: Tensor, mask: Any, each: Tensor, last: Tensor) -> Tensor:
    """Apply the last token's row of the mask that the implementation was given, whatever its form."""
    tokens = scores.shape[-1]
    if hasattr(mask, "mask_mod"):  # flex attention: a function of indices
        position = torch.arange(tokens, device=scores.device)
        seen = mask.mask_mod(each[:, None], torch.zeros_like(each)[:, None], last[:, None], position[None])
        return scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min)
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return scores
    row = mask.expand(len(each), *mask.shape[1:])[each, :, last, :tokens]  # (B, 1 or H, T)
    if row.dtype == torch.bool:
        return scores.masked_fill(~row, torch.finfo(scores.dtype).min)
    return scores + row
