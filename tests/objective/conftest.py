from __future__ import annotations

import pytest

from sra_core.objective import chunks


@pytest.fixture(params=[1 << 22, 40], ids=["one chunk", "small chunks"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", request.param)
    monkeypatch.setattr(chunks, "ROWS_AT_LEAST", 1)
