"""Settings in the making: values from a file and the environment, and what is wrong with them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeGuard, TypeVar, cast, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from corral import CorralError
from corral_worker.secret import Secret

T = TypeVar("T", bound=msgspec.Struct)
Table = dict[str, object]
Rules = Callable[[str, object], Iterable[tuple[str, str]]]
"""Of a setting and its value: what is wrong, as paths below the setting and messages."""

_MAX_SECRET_BYTES = 64 * 1024


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing wrong with the settings."""

    source: str
    """The file or the environment variable it stands in."""
    path: str
    """The setting, such as ``policy.ceilings.wall_s``; empty if it is none."""
    message: str
    """What is wrong, and what would be accepted. Never a secret."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.path, self.message) if part)


class SettingsError(Exception):
    """Raised if the settings cannot be used as they stand. Lists everything found wrong."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Draft(Generic[T]):
    """Collects a Struct's fields from sources; the later source counts.

    It goes on after a problem, so that one :class:`SettingsError` can list all.
    """

    def __init__(self, kind: type[T], rules: Rules) -> None:
        self._kind = kind
        self._rules = rules
        self._fields = {field.name: field for field in msgspec.structs.fields(kind)}
        self._values: Table = {}
        self._problems: list[Problem] = []

    def take_file(self, path: Path) -> None:
        """Take what a TOML file sets."""
        source = f"file {path}"
        try:
            table: Table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            self.refuse(source, "", f"cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self.refuse(source, "", "is no UTF-8 text")
        except tomllib.TOMLDecodeError as error:
            # Only the place: the parser's message may quote what stands there.
            place = str(error).rpartition("(")[2].rstrip(")")
            self.refuse(source, "", f"is not valid TOML ({place})")
        else:
            unknown = dict(_unknown(self._kind, table))
            for key, message in unknown.items():
                self.refuse(source, key, message)
            for name in sorted(table.keys() - {key.partition(".")[0] for key in unknown}):
                self.take(source, name, table[name], strict=True)

    def take_secret_file(self, source: str, name: str, path: Path) -> None:
        """Take a secret that a file of its own holds, as systemd's credentials do."""
        source = f"{source}, file {path}"
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_SECRET_BYTES).decode().strip()
        except OSError as error:
            self.refuse(source, name, f"cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self.refuse(source, name, "is no UTF-8 text")
        else:
            self.take(source, name, text, strict=True)

    def take(self, source: str, name: str, value: object, *, strict: bool) -> None:
        """Take one value; not strictly means that text may stand for a number."""
        field = self._fields[name]
        try:
            decoded = _decoded(field, value, strict=strict)
        except _Refused as error:
            message = error.message if strict else error.message.removesuffix(", got str")
            self.refuse(source, name + error.path, message + ("" if error.path else _help(field)))
            return
        except CorralError as error:
            self.refuse(source, name, error.message)
            return
        for path, message in self._rules(name, decoded):
            self.refuse(source, f"{name}.{path}".rstrip("."), message)
        self._values[name] = decoded

    def refuse(self, source: str, path: str, message: str) -> None:
        """Note a problem."""
        self._problems.append(Problem(source=source, path=path, message=message))

    def require(self, name: str, message: str) -> None:
        """Note a problem if no source sets ``name``, or tries to."""
        tried = {problem.path.partition(".")[0] for problem in self._problems}
        if name not in self._values and name not in tried:
            self.refuse("settings", name, message)

    def finish(self) -> T:
        """Return the Struct.

        Raises:
            SettingsError: there was a problem.
        """
        if self._problems:
            raise SettingsError(self._problems)
        return msgspec.convert(self._values, self._kind, dec_hook=_decode_special)


def hint(wrong: str, known: Iterable[str]) -> str:
    """Return what was probably meant, or all that is known."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"


def _decoded(field: FieldInfo, value: object, *, strict: bool) -> object:
    """Return the value as the field's type; what a table leaves out keeps the default."""
    kind = _plain(field.type)
    if isinstance(field.default, msgspec.Struct):
        value = _merged(msgspec.to_builtins(field.default), value)
    # Item by item, for msgspec leaves the keys of a dict out of its paths.
    if get_origin(kind) is dict and isinstance(value, Mapping):
        item_kind = get_args(kind)[1]
        return {key: _converted(item, item_kind, f".{key}") for key, item in value.items()}
    return _converted(value, field.type, "", strict=strict)


def _converted(value: object, kind: object, below: str, *, strict: bool = True) -> object:
    try:
        return msgspec.convert(value, cast("type", kind), strict=strict, dec_hook=_decode_special)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise _Refused(message.replace("`", ""), below + path.rstrip("`")) from None


class _Refused(Exception):
    """A value is not of its type: the message, and the path below the setting."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message, path)
        self.message = message
        self.path = path


def _merged(below: object, above: object) -> object:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}


def _decode_special(kind: type, value: object) -> object:
    if isinstance(value, kind):
        return value
    if not isinstance(value, str):
        # ValueError, for that is what msgspec adds the path to.
        raise ValueError(f"Expected str, got {type(value).__name__}")  # noqa: TRY004
    if kind is Secret:
        return Secret(value)
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)


def _unknown(kind: type[msgspec.Struct], table: Table, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each key that no field has, and what was probably meant."""
    kinds = {field.name: _plain(field.type) for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in kinds:
            yield f"{path}{key}", f"unknown key; {hint(key, kinds)}"
        elif isinstance(value, dict):
            inner = kinds[key]
            if _is_struct(inner):
                yield from _unknown(inner, value, f"{path}{key}.")
            elif get_origin(inner) is dict and _is_struct(item_kind := get_args(inner)[1]):
                for name, item in value.items():
                    if isinstance(item, dict):
                        yield from _unknown(item_kind, item, f"{path}{key}.{name}.")


def _is_struct(kind: object) -> TypeGuard[type[msgspec.Struct]]:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _plain(kind: object) -> object:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _help(field: FieldInfo) -> str:
    kind = _plain(field.type)
    choices = f"; use one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else ""
    notes = [note.description for note in get_args(field.type) if isinstance(note, msgspec.Meta)]
    return f"{choices} ({' '.join(filter(None, notes))})"
