"""HEIC photographs and what begins like them: decoded as shown, within the limits, in the sandbox."""

from __future__ import annotations

import base64
import functools
import io

import numpy as np
import pytest
from PIL import Image

from components.images.decode import DecodeError, DecodeLimits, decode, decode_probed, looks_like_image, prepare, probe
from components.images.sandbox import Sandbox, SandboxParams

# 96 x 64 pixels in four colours, red and green above blue and yellow, and EXIF orientation 6: shown turned clockwise.
TURNED = base64.b85decode(
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004@ZDn*}000000000XXk=`10000000000aA{+700000000000000000000G-+&aV*mgE07O6l"
    "0ssL300001#Q*^S00000007<q0ssI200N@`0RR9100000Bme*aIB98aW&i*H00062000$fZf0cy000000RRAKc4ILB0000LX>Mj^0ssI300IC2"
    "MR;ju000004sdC7Z2$lO00031007`=aB^?}006*gaAR)(004Msc4I>U18@KU0FVFx0000U@BsY%`1k+-4+CHT0RR|40Sp2E{{wIU00RJ!00093"
    "00RIXx&lC90096iLID8-Z~y=U0FVFx0{{R603M()fd!W8Nhz*w0vZem00093$N&HX00=;000968L;=Baup&SJ000wXZ)|dIV{CW;0RRmE27mwn"
    "02FC+aAg1h000000AK(B06+i$01$9#cxeCt0009B2nYZG010VwZ*&6y000<iaBX1#00000000310R@2q0|bQt000_ka%E-!00000000hSWOHKx"
    "0ssL30RR923T<RzbN~PV+9(091~^*${WtiQ2mk-FjCvpHt%$qjX}bGVGXMCV@Bi*motWWIAt&8<zVq>ZBmIjTCfhM2071JRvDW!bS2<TEfD!FB"
    ">aPAQU7Nz*H;KRmOMlYjmyh;sCsJSpnJ#OHIEV}a(?IJ?AMy;_$Mg`9|MzH5*w{1U*9RCW@*+73UC%#k?^|Tx{h{E!+V0lh`S=?CE6LE*<Sl4H"
    "=}uE&B!UQ*N4D2zdpocHS?B-#!l793Ccppx7qYqZ%%RcaFL4Glp}OS`ZXBKFcEoWk?_)Rn%Kv}>000I>cxh$;08LE*DgXcg2mk>A5&#1L00031"
    "1^@s60000"
)
SHOWN = {(5, 5): (30, 30, 220), (5, -5): (220, 30, 30), (-5, 5): (230, 230, 40), (-5, -5): (30, 200, 30)}


def sized(side: int) -> bytes:
    """The picture with another size in its header."""
    data = bytearray(TURNED)
    at = data.find(b"ispe") + 8
    data[at : at + 8] = side.to_bytes(4, "big") * 2
    return bytes(data)


def look(data: bytes) -> bytes:
    return decode(data, DecodeLimits()).tobytes()


@pytest.mark.parametrize("major", [b"heic", b"mif1"])
def test_a_phones_photograph_is_decoded_as_shown(major: bytes) -> None:
    data = TURNED[:8] + major + TURNED[12:]
    assert looks_like_image(data[:32])
    rgb, facts = decode_probed(data, DecodeLimits())
    assert (facts.format, facts.width, facts.height, facts.frames) == ("heif", 64, 96, 1)
    assert rgb.shape == (96, 64, 3)
    for place, colour in SHOWN.items():
        assert np.abs(rgb[place].astype(int) - colour).max() <= 4


def test_limits_are_checked_on_the_header() -> None:
    assert (probe(sized(9000)).width, probe(sized(9000)).height) == (9000, 9000)
    for data, limits, reason in (
        (sized(9000), DecodeLimits(), "too-many-pixels"), (sized(40_000), DecodeLimits(), "too-many-pixels"),
        (TURNED, DecodeLimits(min_side=65), "too-small"), (TURNED, DecodeLimits(max_bytes=700), "too-many-bytes"),
    ):  # fmt: skip
        with pytest.raises(DecodeError) as fault:
            decode(data, limits)
        assert fault.value.reason == reason


def test_a_cut_file_is_corrupt_and_any_damage_has_a_reason() -> None:
    for length in (60, 300, len(TURNED) - 50):
        with pytest.raises(DecodeError) as fault:
            decode(TURNED[:length], DecodeLimits())
        assert fault.value.reason == "corrupt"
    random = np.random.default_rng(0)
    found = set()
    for _ in range(150):
        data = np.frombuffer(TURNED, np.uint8).copy()
        data[random.integers(0, len(data), 3)] = random.integers(0, 256, 3)
        try:
            decode(data.tobytes()[: int(random.integers(1, len(data) + 1))], DecodeLimits())
        except DecodeError as broken:
            found.add(broken.reason)
    assert "corrupt" in found


def test_the_sandbox_decodes_it_too() -> None:
    with Sandbox(look, SandboxParams(megabytes=300), prepare) as sandbox:
        assert bytes(sandbox(TURNED)) == look(TURNED)


def test_a_raw_file_is_no_picture_of_its_thumbnail() -> None:
    buffer = io.BytesIO()
    tags = {0x10F: "A camera's maker", 0xFE: 1, 0x14A: 8}
    Image.new("RGB", (40, 30), "teal").save(buffer, "TIFF", tiffinfo=tags)
    data = buffer.getvalue()
    with pytest.raises(DecodeError, match="raw file") as fault:
        decode(data, DecodeLimits())
    assert fault.value.reason == "not-an-image"
    plain = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(plain, "TIFF", tiffinfo={0x10F: "A scanner's maker"})
    assert functools.reduce(lambda a, b: a * b, decode(plain.getvalue(), DecodeLimits()).shape) == 3600
