"""Texts that break aligners: many scripts, composed and decomposed, joined emoji, odd white space, controls."""

from __future__ import annotations

import random
import unicodedata

VIETNAMESE = "Tiếng Việt là ngôn ngữ chính thức của Việt Nam; người Huế, nghệ thuật, khuỷu tay."

SHORT: dict[str, str] = {
    "english": "It's 12:30 — don't wait (he said), the naïve café closes at 17.45 sharp! Prices: $1,299.99.",
    "vietnamese-composed": unicodedata.normalize("NFC", VIETNAMESE),
    "vietnamese-decomposed": unicodedata.normalize("NFD", VIETNAMESE),
    "chinese": "今天天气很好，我们去公园散步吧。𠮷野家在哪里？",
    "japanese": "東京は晴れです。ｶﾀｶﾅとカタカナ、㌔と①。",
    "thai": "สวัสดีชาวโลก วันนี้อากาศดีมาก น้ำ",
    "arabic": "مرحبا بالعالم، اللُّغَةُ العَرَبِيَّةُ ١٢٣",
    "hindi": "नमस्ते दुनिया, हिन्दी में लिखा है क्ष त्र",
    "korean-jamo": unicodedata.normalize("NFD", "한국어를 씁니다") + " 한국어",
    "emoji": "ok 👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇻🇳🇯🇵 ❤️ 1️⃣ end",
    "code": "def f(x):\n\tif x > 0:\n\t\treturn x ** 2\n    # spaces\treturn\r\nprint(f(3))\r\n\r\n",
    "white-space": "a\u00a0b \u200b c\u2028d\u2029e\u3000f\u202fg  h   i\u0085j \t k",
    "controls": "a\x00b\x01c\x07d\x1be\x7ff\ufeffg\u00adh\ufffdi",
    "compatibility": "ﬁne ½ ² ™ Ⅷ ﷺ ＡＢＣ ǆ ẞ İstanbul",
    "marks": "e\u0301\u0302\u0323 \u0301 x\u20e3 \u0bcd a\u0301b",
    "spaces-only-ends": "   leading and trailing   ",
    "markers": "▁under ▁ <0x41> ## ##ing Ġ Ċ <unk> [UNK]",
    "one-letter": "a",
    "one-emoji": "👩‍👩‍👧",
    "one-space": " ",
}

LONG: dict[str, str] = {
    "one-line-50kB": "".join(random.Random(0).choices("abcdefghij klmnop,é東👍", k=40_000)),
    "one-line-200kB": "".join(random.Random(0).choices("abcdefghij klmnop,é東👍", k=160_000)),
    "ten-thousand-spaces": "x" + " " * 10_000 + "y",
    "one-word": "a" * 5_000,
}

ALPHABET = [
    *"abcXYZ 019.,'-\n\t\r",
    *"éềơñüß",
    "e\u0301",
    "o\u031b\u0301",
    *"東京語ｶ한",
    "\u1112\u1161\u11ab",
    *"กำ้नमस्",
    *"بًّ",
    "👩‍👩‍👧",
    "👍🏽",
    "🇻🇳",
    *"\u00a0\u200b\u200d\u2028\ufeff\x00\x1f",
    *"ﬁ½²",
    "𐍈",
    "  ",
    "▁",
    "the ",
    " in",
]


def fuzzed(seed: int, length: int = 40) -> str:
    """A mixture of everything above, the same for a seed on every machine."""
    return "".join(random.Random(seed).choices(ALPHABET, k=length))
