"""Read and check the texts of a sample, from the locations in a setting such as `texts: {en: json.en}`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from vfm.data.samples.caption_templates import filled, is_template
from vfm.data.samples.sample import BadSample
from vfm.data.samples.spec import DatasetSpec

MAX_CAPTION_BYTES = 64 << 10  # no caption is longer, but a damaged field may be


def decode_text(data: bytes, where: str) -> str:
    """Decode bytes as UTF-8 text.

    Raises:
        BadSample: If the text is too long, or not UTF-8.
    """
    if len(data) > MAX_CAPTION_BYTES:
        raise BadSample("caption_too_long", where)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSample("wrong_encoding", where) from None


def decode_json(data: bytes, where: str) -> dict[str, Any]:
    """Decode the `json` member of a sample.

    Raises:
        BadSample: If the data are not UTF-8, or not a JSON object.
    """
    try:
        record = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadSample("wrong_encoding", where) from None
    except (ValueError, RecursionError):
        raise BadSample("broken_json", where) from None
    if not isinstance(record, dict):
        raise BadSample("broken_json", where)
    return record


def clean_captions(value: object, where: str) -> list[str]:
    """Strip the captions of a field, and drop empty ones.

    Args:
        value: A caption, a list of captions or nothing.
        where: Address of the sample, for messages.

    Raises:
        BadSample: If a caption is longer than 64 KiB, has half a surrogate pair, or has a NUL. Text with NULs is UTF-16
            or not text, and removing them would change the words.
    """
    values = value if isinstance(value, list) else [value]
    stripped = [item.strip() for item in values if isinstance(item, str)]
    captions = list(filter(None, stripped))
    for caption in captions:
        try:
            # The length in characters is checked first, because it is free and bounds the cost of encoding.
            too_long = len(caption) > MAX_CAPTION_BYTES or len(caption.encode()) > MAX_CAPTION_BYTES
        except UnicodeEncodeError:
            raise BadSample("wrong_encoding", where) from None
        if "\0" in caption:
            raise BadSample("nul_in_caption", where)
        if too_long:
            raise BadSample("caption_too_long", where)
    return captions


def captions_in(data: bytes, part: str, where: str) -> list[str]:
    """Extract the captions from a text file, or from a part of it.

    Args:
        data: Content of the file.
        part: Part of the file. Empty: the whole file. `lines`: one caption per line. `first`: the first line. Any other
            word: the text after `WORD=` in each line that begins with it.
        where: Address of the sample for errors.

    Raises:
        BadSample: See `decode_text` and `clean_captions`.
    """
    text = decode_text(data, where)
    if not part:
        return clean_captions(text, where)
    lines = text.splitlines()
    if part == "first":
        lines = lines[:1]
    elif part != "lines":
        lines = [line.removeprefix(f"{part}=") for line in lines if line.startswith(f"{part}=")]
    return clean_captions(lines, where)


def is_unicode(text: str) -> bool:
    """Check that all bytes of a text were UTF-8. Other bytes are read as half surrogates."""
    return not any("\udc80" <= char <= "\udcff" for char in text)


def field_of(record: Mapping[str, Any], dotted: str) -> object:
    """Look up the value at a dotted key of a JSON record (`meta.caption.en`), if there is one."""
    value: Any = record
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def captions_of_members(
    spec: DatasetSpec, members: Mapping[str, bytes], record: Mapping[str, Any], where: str
) -> dict[str, list[str]]:
    """Read the captions of a sample of a tar.

    Args:
        spec: Locations of the captions.
        members: Files of the sample by extension.
        record: Its decoded `json`.
        where: Address of the sample, for messages.

    Raises:
        BadSample: See `captions_of`.
    """

    def value_at(location: str) -> object:
        extension, _, rest = location.partition(".")
        if extension == "json":
            return field_of(record, rest)
        return captions_in(members.get(extension, b""), rest, where)

    return captions_of(spec, lambda location: captions_at(location, value_at, spec, where), where)


def captions_at(location: str, value_at: Callable[[str], object], spec: DatasetSpec, where: str) -> list[str]:
    """Read the captions at a location of `texts`, or fill in a template.

    Args:
        location: The location, or a template with locations in braces.
        value_at: Reads the value at a location.
        spec: Has the names of numbers.
        where: Address of the sample for errors.

    Raises:
        BadSample: See `clean_captions`.
    """
    value = filled(location, value_at, spec.value_names) if is_template(location) else value_at(location)
    return clean_captions(value, where)


def captions_of(spec: DatasetSpec, read: Callable[[str], list[str]], where: str) -> dict[str, list[str]]:
    """Read the captions of a sample for each language of a spec that has any.

    Args:
        spec: Names the locations of the captions, and says whether they are optional.
        read: Reads the captions at a location.
        where: Address of the sample for errors.

    Raises:
        BadSample: If no language has a caption, or a caption cannot be read, and the spec requires captions.
    """
    try:
        texts = {language: read(source) for language, source in spec.texts.items()}
    except BadSample:
        if not spec.captions_optional:
            raise
        return {}
    return require_captions(spec, texts, where)


def require_captions(spec: DatasetSpec, texts: Mapping[str, list[str]], where: str) -> dict[str, list[str]]:
    """Select the languages that have captions.

    Args:
        spec: Whether captions are required.
        texts: Captions by language.
        where: Address of the sample, for messages.

    Raises:
        BadSample: If no language has a caption, and the spec requires one.
    """
    nonempty = {language: captions for language, captions in texts.items() if captions}
    if spec.texts and not nonempty and not spec.captions_optional:
        raise BadSample("missing_caption", where)
    return nonempty
