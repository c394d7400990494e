"""The bytes of a journal file: a header, then one record per commit, each chained to the one before by its checksum."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAGIC = b"LATDYNJ1"
"""What a journal begins with."""
_HEADER = struct.Struct("<8s16sQ16s")
MARK_OFFSET = 512
"""Where the mark stands that says that pages are moving: in a disk sector of its own, apart from the header."""
MARK_BYTES = 16
RECORDS_OFFSET = 1024
"""Where the first record stands."""

_RECORD = struct.Struct("<16sQQQQQ16s")
RECORD_BYTES = _RECORD.size + 4
_PAGE = struct.Struct("<QI")
PAGE_BYTES = 4096
"""Unit of change."""
HEAD_BYTES = 64
"""So many first bytes of the main file identify the state that a journal starts from."""


class JournalError(Exception):
    """The journal has commits that can no longer be read, or belongs to another file; the message says which."""


@dataclass(frozen=True)
class Header:
    """First bytes of a journal; never written over while there are records behind them.

    Attributes
    ----------
    salt : bytes
        16 random bytes, new whenever the journal is emptied: records of an earlier life are never taken for current.
    base_size : int
        Size of the main file that the first record builds on.
    head : bytes
        Digest of its first `HEAD_BYTES` bytes.
    """

    salt: bytes
    base_size: int
    head: bytes

    def encode(self) -> bytes:
        """Return the header's bytes."""
        body = _HEADER.pack(MAGIC, self.salt, self.base_size, self.head)
        return body + struct.pack("<I", zlib.crc32(body))


def new_header(base_size: int, head: bytes) -> Header:
    """Return the header of an empty journal over a main file of `base_size` bytes that starts with `head`."""
    return Header(salt=os.urandom(16), base_size=base_size, head=digest_head(head))


def digest_head(head: bytes) -> bytes:
    """Digest of the first bytes of the main file."""
    return hashlib.blake2b(head[:HEAD_BYTES], digest_size=16).digest()


def decode_header(data: bytes) -> Header | None:
    """Return the header that `data` starts with, or None if it is torn or something else."""
    if len(data) < _HEADER.size + 4:
        return None
    body = data[: _HEADER.size]
    magic, salt, base_size, head = _HEADER.unpack(body)
    if magic != MAGIC or struct.unpack_from("<I", data, _HEADER.size)[0] != zlib.crc32(body):
        return None
    return Header(salt=salt, base_size=base_size, head=head)


def moving_mark(header: Header, records: int) -> bytes:
    """Return what stands at `MARK_OFFSET` once pages of so many records begin to move into the main file."""
    return header.salt[:8] + struct.pack("<Q", records)


def is_moving(data: bytes, header: Header) -> bool:
    """Return whether pages of this journal may be on their way into the main file."""
    return data[MARK_OFFSET : MARK_OFFSET + 8] == header.salt[:8]


@dataclass
class Contents:
    """What the valid records of a journal add up to.

    Attributes
    ----------
    pages : dict
        Offset in the main file, a multiple of `PAGE_BYTES` -> newest bytes there; fewer than a page where only part
        of it existed as of the commit.
    size : int
        Size of the main file as of the last record.
    largest_size : int
        Largest size as of any record: below it, the main file is not written directly.
    records : int
    end : int
        Offset in the journal behind the last valid record.
    digest : bytes
        Checksum of the last valid record, or the salt: the next record continues from it.
    heads : set of bytes
        Digests of the main file's first bytes as of the base and of each record.
    """

    size: int
    largest_size: int
    digest: bytes
    pages: dict[int, bytes] = field(default_factory=dict)
    records: int = 0
    end: int = RECORDS_OFFSET
    heads: set[bytes] = field(default_factory=set)


def lay_pages_over(pages: Mapping[int, bytes | bytearray], view: memoryview, start: int) -> None:
    """Copy the parts of pages that fall into `view`, which shows the file from `start` on, over what is there."""
    if not pages:
        return
    stop = start + len(view)
    for offset in range(start - start % PAGE_BYTES, stop, PAGE_BYTES):
        page = pages.get(offset)
        if page is not None:
            first, last = max(start, offset), min(stop, offset + len(page))
            if first < last:
                view[first - start : last - start] = page[first - offset : last - offset]


def encode_record(header: Header, after: Contents, size: int, pages: Mapping[int, bytes]) -> tuple[bytes, bytes]:
    """Return the bytes of the record that follows `after`, and its checksum.

    Parameters
    ----------
    header : Header
    after : Contents
        The journal so far.
    size : int
        Size of the main file as of this commit.
    pages : mapping
        Offset in the main file -> new bytes there.
    """
    index = b"".join(_PAGE.pack(offset, len(page)) for offset, page in pages.items())
    payload = b"".join([index, *pages.values()])
    record = _Record(after.records, after.size, size, len(pages), memoryview(payload))
    digest = _digest(after.digest, record)
    numbers = (record.number, record.size_before, record.size_after, record.page_count, len(payload))
    body = _RECORD.pack(header.salt, *numbers, digest)
    return b"".join([body, struct.pack("<I", zlib.crc32(body)), payload]), digest


def read_contents(data: bytes, header: Header) -> Contents:
    """Read the records of a journal up to the first that is not whole.

    Raises
    ------
    JournalError
        If a record that is not whole is followed by another: each is synced before the next is written, so this is
        no interrupted commit but damage, and commits would be lost silently.
    """
    contents = Contents(size=header.base_size, largest_size=header.base_size, digest=header.salt, heads={header.head})
    while (record := _record_at(data, contents.end, header.salt)) is not None:
        digest = _digest(contents.digest, record)
        if digest != record.digest or record.number != contents.records or record.size_before != contents.size:
            break
        contents.pages.update(_pages(record.payload, record.page_count))
        contents.size = record.size_after
        contents.largest_size = max(contents.largest_size, record.size_after)
        contents.records += 1
        contents.digest = digest
        contents.end += RECORD_BYTES + len(record.payload)
        if 0 in contents.pages:
            contents.heads.add(digest_head(contents.pages[0]))
    _refuse_damage(data, contents.end, header.salt)
    return contents


@dataclass(frozen=True)
class _Record:
    number: int
    size_before: int
    size_after: int
    page_count: int
    payload: memoryview
    digest: bytes = b""


def _digest(previous: bytes, record: _Record) -> bytes:
    numbers = struct.pack("<QQQQ", record.number, record.size_before, record.size_after, record.page_count)
    checksum = hashlib.blake2b(previous + numbers, digest_size=16)
    checksum.update(record.payload)
    return checksum.digest()


def _record_at(data: bytes, start: int, salt: bytes) -> _Record | None:
    if not _record_header_at(data, start):
        return None
    found, number, before, after, pages, length, digest = _RECORD.unpack_from(data, start)
    payload = memoryview(data)[start + RECORD_BYTES : start + RECORD_BYTES + length]
    if found != salt or len(payload) < length:
        return None
    return _Record(number, before, after, pages, payload, digest)


def _pages(payload: memoryview, count: int) -> Iterable[tuple[int, bytes]]:
    position = count * _PAGE.size
    for entry in range(count):
        offset, length = _PAGE.unpack_from(payload, entry * _PAGE.size)
        yield offset, bytes(payload[position : position + length])
        position += length


def _refuse_damage(data: bytes, end: int, salt: bytes) -> None:
    """Raise if the header of a record stands anywhere behind the one that could not be read."""
    position = data.find(salt, end + 1)
    while position >= 0:
        if _record_header_at(data, position):
            raise JournalError(f"the journal is damaged at byte {end}, with later commits behind it")
        position = data.find(salt, position + 1)


def _record_header_at(data: bytes, start: int) -> bool:
    if start + RECORD_BYTES > len(data):
        return False
    body = data[start : start + _RECORD.size]
    return bool(struct.unpack_from("<I", data, start + _RECORD.size)[0] == zlib.crc32(body))
