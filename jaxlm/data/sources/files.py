"""Files by path, wherever they are: list, open, decompress. Local, etils.epath or fsspec.

`gs://`, `s3://`, `az://` and `hf://` go through etils.epath; any other `scheme://` through fsspec;
a path without a scheme is local.
"""

import contextlib
import glob
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import IO, Any

_EPATH = ("gs://", "s3://", "az://", "hf://")
_CHUNK = 1 << 20


def listing(source: str) -> tuple[str, list[str]]:
    """The root and the files of `source` (a file, a directory, a glob), sorted by path.

    In a directory (searched in depth) and under a glob, names that start with a dot are skipped.

    Raises: FileNotFoundError naming the path that is missing, or a directory or glob without files;
    ImportError or ConnectionError naming a remote source that cannot be read.
    """
    with remote(source):
        return _listing(source)


def _listing(source: str) -> tuple[str, list[str]]:
    wild = glob.has_magic(source) and not exists(source)
    if source.startswith(_EPATH):
        root, paths = _listing_epath(source, wild)
    elif "://" in source:
        root, paths = _listing_fsspec(source, wild)
    else:
        root, paths = _listing_local(source, wild)
    if paths == [source]:
        return root, paths
    paths = sorted(path for path in paths if not _hidden(path[len(root) :]))
    if not paths:
        kind = "glob matches no file" if wild else "directory holds no file"
        raise FileNotFoundError(
            f"source {source!r}: this {kind} (names that start with a dot are skipped)"
        )
    return root, paths


def _hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))


def _listing_local(source: str, wild: bool) -> tuple[str, list[str]]:
    if wild:
        paths = [p for p in glob.glob(source, recursive=True) if os.path.isfile(p)]
        return _fixed(source), paths
    path = pathlib.Path(source).expanduser()
    if path.is_file():
        return str(path.parent), [source]
    if not path.is_dir():
        raise FileNotFoundError(_missing(source))
    return str(path), [str(p) for p in path.rglob("*") if p.is_file()]


def _listing_epath(source: str, wild: bool) -> tuple[str, list[str]]:
    from etils import epath

    if wild:
        root = _fixed(source)
        pattern = source[len(root) :].lstrip("/")
        return root, [str(p) for p in epath.Path(root).glob(pattern) if p.is_file()]
    path = epath.Path(source)
    if path.is_file():
        return str(path.parent), [source]
    if not path.is_dir():
        raise FileNotFoundError(_missing(source))
    return str(path), [str(p) for p in path.rglob("*") if p.is_file()]


def _listing_fsspec(source: str, wild: bool) -> tuple[str, list[str]]:
    scheme = source.split("://")[0] + "://"
    fs, path = _fsspec(source)
    if wild:
        # Paths from glob have lost their scheme; so does the root they are compared with.
        paths, root = fs.glob(path), _fixed(path)
    elif fs.isfile(path):
        return source.rsplit("/", 1)[0], [source]
    elif fs.isdir(path):
        paths, root = fs.find(path), path
    else:
        raise FileNotFoundError(_missing(source))
    return scheme + root, [scheme + name for name in paths if fs.isfile(name)]


def _fixed(pattern: str) -> str:
    """The directory before the first part of a glob that holds a wildcard."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first])


@contextlib.contextmanager
def remote(source: str) -> Iterator[None]:
    """Within a `with`: whatever a library of remote storage raises (each has errors of its own)
    becomes an error that names the source, in a line. Of a local source nothing changes.

    Raises: ImportError where the library is missing; ConnectionError where the source cannot be
    reached.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, GeneratorExit):
        raise
    except Exception as error:
        if "://" not in source or str(source) in str(error):
            raise
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        if isinstance(error, ImportError):
            raise ImportError(f"source {source!r}: a library is missing: {reason}") from error
        raise ConnectionError(
            f"source {source!r} cannot be read: {type(error).__name__}: {reason}"
        ) from error


def _missing(source: str) -> str:
    if "://" in source:
        return f"source {source!r}: no such file, directory or glob, or it cannot be reached"
    return (
        f"source {source!r}: no such file or directory, no glob, and not a built-in corpus "
        "(pydocs, pysrc, markov) or known:KIND"
    )


def _fsspec(path: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise ValueError(f"source {path!r}: {error}") from error


def exists(path: str) -> bool:
    """Whether a file or directory of exactly this name exists (a name may hold `[` or `*`)."""
    if path.startswith(_EPATH):
        from etils import epath

        return epath.Path(path).exists()
    if "://" in path:
        fs, name = _fsspec(path)
        return fs.exists(name)
    return pathlib.Path(path).expanduser().exists()


def open_binary(path: str) -> IO[bytes]:
    """The file, open for reading bytes."""
    with remote(path):
        if path.startswith(_EPATH):
            from etils import epath

            return epath.Path(path).open("rb")
        if "://" in path:
            fs, name = _fsspec(path)
            return fs.open(name, "rb")
    return pathlib.Path(path).expanduser().open("rb")


def content_name(path: str) -> str:
    """The path without a compression suffix: `a.jsonl.gz` holds `a.jsonl`."""
    return path[: path.rindex(".")] if path.endswith((".gz", ".zst")) else path


def chunks(path: str) -> Iterator[bytes]:
    """The file's decompressed bytes, in pieces of about a megabyte.

    Raises: ValueError naming a corrupt or truncated .gz or .zst file.
    """
    with remote(path), open_binary(path) as file:
        if path.endswith(".gz"):
            yield from _gunzip(file, path)
        elif path.endswith(".zst"):
            yield from _unzstd(file, path)
        else:
            while data := file.read(_CHUNK):
                yield data


def _gunzip(file: IO[bytes], path: str) -> Iterator[bytes]:
    import gzip

    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while data := stream.read(_CHUNK):
                yield data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: corrupt or truncated gzip data ({error})") from error


def _unzstd(file: IO[bytes], path: str) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise ImportError(
            f"{path}: reading .zst needs zstandard: pip install 'jaxlm[zstd]'"
        ) from error
    decompress, pending = zstandard.ZstdDecompressor().decompressobj(), False
    try:
        while data := file.read(_CHUNK):
            while data:  # a file may hold several frames, one after the other
                yield decompress.decompress(data)
                pending, data = not decompress.eof, decompress.unused_data
                if decompress.eof:
                    decompress = zstandard.ZstdDecompressor().decompressobj()
    except zstandard.ZstdError as error:
        raise ValueError(f"{path}: corrupt zstd data ({error})") from error
    if pending:
        raise ValueError(f"{path}: truncated zstd data (the last frame does not end)")
