"""Credentials in addresses, texts and settings become `***`; ordinary addresses and texts stay as they are."""

from __future__ import annotations

import pytest

from vfm.base import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://joe:sekret@host/x?page=1", "https://joe:***@host/x?page=1"),
        ("https:/joe:sekret@h/x.png?sig=sekret: no such image", "https:/joe:***@h/x.png?sig=***: no such image"),
        ("https:/sekret@h/x.png", "https:/***@h/x.png"),
        ("https://joe:sek@ret@host/a", "https://joe:***@host/a"),
        ("s3://AKIA:sek/r+et/@bucket/a", "s3://AKIA:***@bucket/a"),
        ("simplecache::s3://AKIA:sek/ret@bucket", "simplecache::s3://AKIA:***@bucket"),
        ("https://u:sekret@h/a,https://v:sekret@h/b@c", "https://u:***@h/a,https://v:***@h/b@c"),
        ("set aws_secret_access_key=sek/r+et and run", "set aws_secret_access_key=*** and run"),
        ("AWS_SECRET_ACCESS_KEY: sekret", "AWS_SECRET_ACCESS_KEY: ***"),
        ("client.py --password=sekret x", "client.py --password=*** x"),
        ("passphrase=sekret, jwt='sek.ret'", "passphrase=***, jwt=***"),
        ("https://h/x?jwt=sekret&n=1", "https://h/x?jwt=***&n=1"),
        ("api_key: [sekret, sekret]", "api_key: ***"),
        ("{storage_options: {key: sekret, secret: sekret}, n: 1}", "{storage_options: ***, n: 1}"),
        ("Authorization: Bearer sek.ret", "Authorization: Bearer ***"),
        ("authorization='Basic c2VrcmV0'", "authorization='Basic ***'"),
        ("got Bearer sekretsekretsekret", "got Bearer ***"),
        ("Cookie: session=sekret; other=sekret", "Cookie: ***"),
        ("hf_token=sekret, private_key: sekret, pwd=sekret", "hf_token=***, private_key: ***, pwd=***"),
        ("connection_string=AccountKey=sekret", "connection_string=***"),
        ("hf://hf_abcdefghijklmnopqrstuvwx@datasets/a/b@main", "hf://***@datasets/a/b@main"),
        ("https://h/x?sas=sekret&code=sekret&barcode=7", "https://h/x?sas=***&code=***&barcode=7"),
    ],
)
def test_credentials_in_texts_are_masked(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown
    assert redacted({text: [text]}) == {shown: [shown]}


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8080/@scope/x@y and http://h:80?x=a@b, http://[::1]:8080/a@b",
        "zip://a.csv::https://host/x@y",
        "s3://bucket/a:b@v1 hf://datasets/org/name@main/x abfs://container@account/x ssh://git@host/x",
        '{"a":"s3://bucket","m":"a@b"}',
        "mail a@b.c at 12:30, git@github.com:org/repo, C:/data/x",
        "a.password: unknown key; known: count",
        "a basic augmentation: crop, the bearer of good news, code=3",
        "token: cls, mask_token: learned, key: value; monkey=3, the secretary: nobody, storage_options: none",
    ],
)
def test_ordinary_addresses_and_texts_stay(text: str) -> None:
    assert redacted(text) == text


def test_secrets_in_settings_are_masked_in_lists_and_groups() -> None:
    given = {
        "storage_options": {"key": "AKIA", "sas_token": "s", "anon": False, "endpoint_url": "https://a:b@c"},
        "api_key": ["a", "b"],
        "credentials": {"id": "x", "n": 3},
        "token": "",
        "options": {"key": "uid", "tokens": ["a"]},
    }
    assert redacted(given) == {
        "storage_options": {"key": "***", "sas_token": "***", "anon": False, "endpoint_url": "https://a:***@c"},
        "api_key": ["***", "***"],
        "credentials": {"id": "***", "n": 3},
        "token": "",
        "options": {"key": "uid", "tokens": ["a"]},
    }
