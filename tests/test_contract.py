"""Every law of contract.py on every codec of contract.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from contract import CODECS, LAWS, name_of

import tersegrad as tg


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_every_codec_obeys(law: Callable[[tg.Codec], None], codec: tg.Codec) -> None:
    law(codec)


def test_every_codec_of_the_package_is_in_the_list() -> None:
    assert {type(codec) for codec in CODECS} >= {
        tg.Identity,
        tg.Cast,
        tg.Quantize,
        tg.Sign,
        tg.TopK,
        tg.ChunkTopK,
        tg.RandomK,
        tg.Ternary,
        tg.Integers,
        tg.Threshold,
    }
