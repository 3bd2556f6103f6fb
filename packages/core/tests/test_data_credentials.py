"""Credentials of addresses: none in an artifact, all in the environment, and only for the host that they are for."""

import base64
import re
from pathlib import Path

import pytest

from data_samples import context, encoded, make_pool
from range_server import serving
from vfm.base import UserError
from vfm.data import Source, open_dataset, write_index
from vfm.data.pairs.stages import Pairs
from vfm.data.samples.shards import Shard
from vfm.data.samples.spec import DatasetSpec
from vfm.storage.credentials import with_credentials

BASIC = "Authorization: Basic " + base64.b64encode(b"me:hunter2").decode()
SETTING = "https://joe:sekret@a.org/data/ https://a.org/data/more?sig=3f https://b.org?token=7"


def pool(folder: Path, path: str, **fields) -> Source:
    ctx = context(folder / "artifact")
    return open_dataset(Pairs(kind="data.pairs", name="pool", path=path, **fields).run(ctx))


def files_with(secret: str, folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


@pytest.mark.parametrize(("needs", "user", "query"), [(BASIC, "me:hunter2@", ""), ("sig=hunter2", "", "?sig=hunter2")])
@pytest.mark.parametrize("in_a_file", [False, True])
def test_an_index_has_no_credentials_and_is_read_with_them(tmp_path, monkeypatch, needs, user, query, in_a_file):
    make_pool(tmp_path / "t", [6, 6], broken={2: {"txt": None}})
    whole = (tmp_path / "t/001.tar").read_bytes()
    (tmp_path / "t/001.tar").write_bytes(whole[: len(whole) // 2])  # the lost end is named in `packed.offsets`
    with serving(tmp_path / "t", needs=needs) as server:
        setting = server.url.replace("://", f"://{user}") + "/" + query
        if in_a_file:
            (tmp_path / "credentials.txt").write_text(f"https://other.org/?sig=1\n{setting}\n")
        monkeypatch.setenv("VFM_CREDENTIALS", str(tmp_path / "credentials.txt") if in_a_file else setting)
        far = pool(tmp_path / "far", f"{server.url}/{{000..001}}.tar", max_bad_fraction=0.9)
        near = pool(tmp_path / "near", f"{tmp_path}/t/{{000..001}}.tar", max_bad_fraction=0.9)
        assert far.keys == near.keys
        assert far[0].image == encoded(0)
        assert (far.directory / "offsets/packed.offsets").is_file()
        assert not files_with("hunter2", tmp_path / "far")
        assert files_with("127.0.0.1", tmp_path / "far"), "the test reads the bytes of the addresses"
        monkeypatch.delenv("VFM_CREDENTIALS")
        with pytest.raises(UserError, match=r"000\.tar: no permission"):
            pool(tmp_path / "none", f"{server.url}/000.tar")


@pytest.mark.parametrize("name", ["000.tar", "pairs.csv"])
@pytest.mark.parametrize("form", ["me:hunter2@{}", "{}?X-Amz-Signature=hunter2"])
def test_credentials_in_a_path_are_refused_with_the_cure(tmp_path, name, form):
    make_pool(tmp_path, [3])
    (tmp_path / "pairs.csv").write_text("image,caption\n0.png,a\n")
    with serving(tmp_path) as server:
        scheme, _, rest = f"{server.url}/{name}".partition("://")
        with pytest.raises(UserError) as refused:
            pool(tmp_path / "far", f"{scheme}://{form.format(rest)}")
    assert re.search(r"\*\*\*.*: expected an address without credentials, .* set VFM_CREDENTIALS", str(refused.value))
    assert not files_with("hunter2", tmp_path / "far")


def test_credentials_of_images_in_a_table_are_refused_or_masked(tmp_path):
    signed = "https://a.org/x.png?sig=hunter2"
    table = tmp_path / "pairs.csv"
    table.write_text(f"image,caption\n{signed},a\n")
    with pytest.raises(UserError, match=r"x\.png\?sig=\*\*\*: expected an address without credentials"):
        pool(tmp_path / "far", str(table), image_root="/", verify=False)
    (tmp_path / "0.png").write_bytes(encoded(0))
    table.write_text(f"image,caption\n{signed},a\n0.png,b\n")
    assert len(pool(tmp_path / "inside", str(table), max_bad_fraction=0.9)) == 1  # unsafe_path, whose name is kept
    assert not files_with("hunter2", tmp_path / "far") + files_with("hunter2", tmp_path / "inside/artifact")


def test_no_index_is_written_with_credentials(tmp_path):
    shard = Shard("s3://key:hunter2@bucket/0.tar", "tar", 1, 1, 1)
    with pytest.raises(UserError, match="expected an address without credentials"):
        write_index(tmp_path / "a", [shard], DatasetSpec())
    with pytest.raises(UserError, match="expected an address without credentials"):
        write_index(tmp_path / "b", [], DatasetSpec(image_root="https://me:hunter2@a.org/images"))


@pytest.mark.parametrize(
    ("address", "complete"),
    [
        ("https://a.org/data/x.tar", "https://joe:sekret@a.org/data/x.tar"),
        ("https://a.org/data/more/x.tar", "https://a.org/data/more/x.tar?sig=3f"),
        ("https://a.org/data/more/x.tar?v=1", "https://a.org/data/more/x.tar?v=1&sig=3f"),
        ("https://b.org/x", "https://b.org/x?token=7"),
        *((same, same) for same in (
            "https://a.org/other/x.tar", "http://a.org/data/x.tar", "https://b.org.evil.com/x", "https://b.org@evil.com/x",
            "https://b.org:81/x", "https://me:own@a.org/data/x.tar", "s3://a.org/data/x.tar",
        )),
    ],
)  # fmt: skip
def test_credentials_go_to_their_addresses_alone(monkeypatch, address, complete):
    monkeypatch.setenv("VFM_CREDENTIALS", SETTING)
    assert with_credentials(address) == complete


@pytest.mark.parametrize("setting", ["nowhere.txt", "https://a.org/", "https://a.org/?sig=hunter2 joe:hunter2"])
def test_a_wrong_setting_is_one_line_without_its_secrets(monkeypatch, setting):
    monkeypatch.setenv("VFM_CREDENTIALS", setting)
    with pytest.raises(UserError, match=r"^VFM_CREDENTIALS: ") as refused:
        with_credentials("https://a.org/x.tar")
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)
