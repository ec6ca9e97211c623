"""Uniform numbers that are looked up by a key, not drawn in turn: the same key gives the same number in any order, anywhere."""

from hashlib import blake2b


def stream_of(*parts: int | str) -> bytes:
    """The key of a stream of uniform numbers. Of text there should be one part at most, the last, so that no two streams collide."""
    return blake2b("/".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=32).digest()


def uniform(key: bytes, position: int) -> float:
    """The uniform number in [0, 1), of 53 bits, at `position` of the stream `key`."""
    digest = blake2b(position.to_bytes(8, "little"), key=key, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
