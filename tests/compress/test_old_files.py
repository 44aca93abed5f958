"""Files of version 1 stay readable, whatever becomes of the coder and the libraries below it."""

import base64
from collections.abc import Callable

import pytest
import torch

from paper_format import paper_format
from topiarist import TopiaristError, compress

ANS = """
VFBDRgEuAAQFZGVuc2UAAgIUHocCBGdhcHMAAwGwCVEEcm93cwAEAigeUwRiaWFzAQABAxkLAgAwADQANgA4ADkAOgA7ADyAPAA9gD2Le6
1tGExsPfQD5HH0+qes4NxguhAqGci9I9u+FK9vAmi5c4guVOqaSlGrtti0MAN8jphv6Yt6OEeHq46DaqtAZTj+SEYehKvMDt8eRB5IsXdh
q6vg8LoDIPyDjifnlPUzX3+JGHY4dGQL4L02e0Pbf8NG6mNmLmhcO9MMvL8T767EvaUbHeKj5eN3B0eWBDzcCNft2aIDCrCsd10Ea882BS
1gEZEr0K8vIwY+Y06z39aTtj/g8LFS90xv+RXa6KDJ7C6E3zOFZdzIZSg7xrXERBPROxB0PRJqRi/DwvAic3GPw4BQOijaEVEJ488VMXgF
AgA8AEAAQgBEAEWmEL3mKwjnCzj/xoDIjWJPs2j2jeFMCAEcSWZfyQSV/0+3i2xHn0YAWMCOB3iI1DuZRNCunlnQrsRiod+cMxbElmoWAY
UBBgIAPABAAEIAvADAAML/25J2WtZXBQMNgLzECx0SMLdzd8NBpDN7Elu6F/Uj4rym+2rurx9+o9jYEKV6yTL32Kw197Fod+ri6g1k2B2o
eONfAQAAAADQBT9Bq6qq6ri/UUFVVVVVDfITQZQzGXM=
"""
PAPER = """
VFBDRgEuAAQFZGVuc2UABgIUHqICBGdhcHMABgGwCVMEcm93cwAGAigeeARiaWFzAQABAxn0AgsCADAANAA2ADgAOQA6ADsAPIA8AD2APQ
WFCmNgZgFBFmYgBgChAQHY/ULy2O3R2/V3lNx64cysZREql212k5FqlLsxyWPMupmcP0ZQuzgZ9fCvxrlyv3K13hFoVgyE+VpeMYc+Ph6E
OSlzC3nT/q76dsUYfUBYRh9KI44HBsF8gK0197e+5aoda3Be5yJ053mDJBEKOHmf86eK0frCZqSrk27uddhxcyvC4nqu8sUcl0M2nJVpoH
JY597uJ/eFOLXcAPNIA978hQpjZGJmZWFlwAkAS5GVS4IGw0dCguUovIgYaASKohtVA5hWxCqIUqbS4oDBYMhIk9FaOkKjkABeBMg/KylQ
PyYCQoA0yRQ4VUgHlQRqZMRQ0IJMXInjAHgFAgA8AEAAQgBEAEUFBQADAgMCAiPUcAOBp0UuDmE22N9z+8suv7IPgGM5Yr2YScPvPunv4Z
2W3IUIY2RAB4woPAAPKqqqqqqqqqqqqqqqqqqqhQEGAgA8AEAAQgC8AMAAwgUFAAIDAwMCAyuTYM0hKl4VTbyE8iPn9aNYsxslPRm1bzZv
yCN8Ort9eWaWtJhPzOjpfVeRhRRjYGBiAAFGBgZmMIOFgYEVzICQAByEeIQhCEIwvwhfhCdjE6G67Ov7owjCEeITsQuQAQAAAADQBT9Bq6
qq6ri/UUFVVVVVDfITQZGbU1o=
"""


def written() -> dict[str, torch.Tensor]:
    """What the files hold: mixed numbers from a multiplicative hash."""
    x = torch.arange(1, 1201) * 2654435761 % 2**32
    x = (x ^ (x >> 15)) * 2246822519 % 2**32 >> 8
    dense = ((x[:600] % 17 - 5).clamp(min=0) / 8).reshape(20, 30)
    gaps = torch.zeros(1200)
    gaps[torch.arange(1200) % 20 < 2] = ((x[:120] >> 8) % 5 + 1).float()  # in pairs
    rows = ((x % 7 - 3) * (torch.arange(1200) % 30 % 9 == 2)).float().reshape(40, 30)
    return {"dense": dense, "gaps": gaps, "rows": rows, "bias": x[:3].double() / 3}


@pytest.mark.parametrize(
    ("file", "unpack"), [(ANS, compress.unpack), (PAPER, paper_format.unpack)], ids=["ans", "paper"]
)
def test_an_old_file_is_read(file: str, unpack: Callable[[bytes], dict[str, torch.Tensor]]) -> None:
    state = unpack(base64.b64decode(file))
    assert state.keys() == written().keys()
    assert all(torch.equal(state[name], value) for name, value in written().items())


def test_an_old_file_in_the_papers_format_gets_one_sentence() -> None:
    with pytest.raises(TopiaristError, match=r"dense is in .* Deep Compression paper.*: compress the network again"):
        compress.unpack(base64.b64decode(PAPER))


def test_the_old_file_has_every_coding() -> None:
    codings = [row.coding for row in compress.pack(written())[1].rows]
    assert codings == ["dense", "gaps", "rows", "plain"]
