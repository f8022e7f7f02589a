"""Span centres and masses computed the slow way, straight from method section 2: one text, eager attention, loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sra_core.shards import PreparedRow


def plain_row(model: Any, row: PreparedRow, layers: list[int], weighted: bool = True) -> tuple[dict, dict, np.ndarray]:
    """Centres, masses by layer, and the last layer's token states, in double precision from float32 states.

    Args:
        model: Loaded with eager attention.
    """
    ids = torch.from_numpy(row.teacher_ids.astype(np.int64))[None]
    with torch.no_grad():
        output = model(input_ids=ids, output_attentions=True, output_hidden_states=True)
    centers, mass = {}, {}
    for layer in layers:
        attention = output.attentions[layer - 1][0, :, -1].double().sum(0)  # (T,) heads summed, last row
        weight = (attention / attention.sum()).numpy()
        states = output.hidden_states[layer][0].double().numpy()  # the last one is after the final norm
        rows, masses = [], []
        for start, end in row.teacher_spans.tolist():
            m = sum(weight[t] for t in range(start, end))
            if weighted:
                c = sum(weight[t] * states[t] for t in range(start, end)) / max(m, 1e-5)
            else:
                c = sum(states[t] for t in range(start, end)) / (end - start)
            rows.append(c)
            masses.append(m)
        centers[layer], mass[layer] = np.array(rows), np.array(masses)
    return centers, mass, output.hidden_states[-1][0].double().numpy()
