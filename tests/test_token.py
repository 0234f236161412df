"""The token: where it is sought, how its file is made and guarded, and that no message shows a secret."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockstream import token
from sockstream.errors import SockstreamError

TOKEN = bytes(range(200, 232))
HEX = TOKEN.hex()
OTHER_HEX = bytes(32).hex()
LOADER = """
import sys
from sockstream import token
for home in sys.stdin:
    print(token.load(None, {"HOME": home.rstrip()}).hex(), flush=True)
"""


def token_file(directory: Path, content: str | bytes = HEX + "\n", mode: int = 0o600) -> str:
    """Write a token file and return its path."""
    path = directory / "a token"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return str(path)


def mode_of(path: str | Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(os.stat(path).st_mode)


def refusal(path: str) -> str:
    """Return the message with which an explicit token file is refused."""
    with pytest.raises(SockstreamError) as caught:
        token.load(path, {})
    return str(caught.value)


def first_user() -> subprocess.Popen[str]:
    """Start a process that loads the token of each home directory it is told, and answers with it."""
    command = [sys.executable, "-c", LOADER]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# Where the token comes from.


def test_the_default_path() -> None:
    """The file is in XDG_CONFIG_HOME, or in .config of HOME when that is unset, empty or relative."""
    assert token.default_path({"XDG_CONFIG_HOME": "/c", "HOME": "/h"}) == "/c/sockstream/token"
    assert token.default_path({"XDG_CONFIG_HOME": "/c"}) == "/c/sockstream/token"
    assert token.default_path({"HOME": "/h"}) == "/h/.config/sockstream/token"
    assert token.default_path({"XDG_CONFIG_HOME": "", "HOME": "/h"}) == "/h/.config/sockstream/token"
    assert token.default_path({"XDG_CONFIG_HOME": "c", "HOME": "/h"}) == "/h/.config/sockstream/token"


def test_the_default_environment_is_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `environ` the variables are those of now, not those of the time of import."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert token.default_path() == f"{tmp_path}/sockstream/token"
    made = token.load()
    assert (tmp_path / "sockstream" / "token").read_text() == made.hex() + "\n"
    monkeypatch.setenv("SOCKSTREAM_TOKEN", HEX)
    assert token.load() == TOKEN
    monkeypatch.delenv("SOCKSTREAM_TOKEN")
    assert token.store(made.hex()) == token.default_path()


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "relative"}, {"XDG_CONFIG_HOME": "c"}])
def test_without_a_home_the_error_names_the_alternatives(environ: dict[str, str]) -> None:
    """Where there is no place for the file, the message names the option and the variable."""
    for attempt in (
        lambda: token.load(None, environ),
        lambda: token.load(None, environ, create=False),
        lambda: token.store(HEX, None, environ),
        lambda: token.default_path(environ),
    ):
        with pytest.raises(SockstreamError, match=r"HOME.*--token-file.*SOCKSTREAM_TOKEN"):
            attempt()


def test_an_explicit_file_comes_first(tmp_path: Path) -> None:
    """The file that is named decides, whatever the variable and the default file say."""
    environ = {"HOME": str(tmp_path), "SOCKSTREAM_TOKEN": OTHER_HEX}
    token.store(OTHER_HEX, None, environ)
    assert token.load(token_file(tmp_path), environ) == TOKEN


def test_the_variable_comes_before_the_default_file(tmp_path: Path) -> None:
    """The variable decides over the default file, which is then neither read nor made."""
    environ = {"HOME": str(tmp_path), "SOCKSTREAM_TOKEN": HEX}
    assert token.load(None, environ) == TOKEN
    assert os.listdir(tmp_path) == []


def test_a_bad_source_does_not_fall_through_to_the_next(tmp_path: Path) -> None:
    """A named file that is malformed or missing is an error, although a good variable is there."""
    environ = {"HOME": str(tmp_path), "SOCKSTREAM_TOKEN": HEX}
    for path in token_file(tmp_path, "nonsense"), str(tmp_path / "missing"), "":
        with pytest.raises(SockstreamError):
            token.load(path, environ)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (HEX, TOKEN),
        (HEX.upper(), TOKEN),
        (HEX[:-1], HEX[:-1].encode()),
        (HEX + "0", HEX.encode() + b"0"),
        (HEX + "\n", HEX.encode() + b"\n"),
        (" " + HEX[1:], b" " + HEX[1:].encode()),
        ("x" * 64, b"x" * 64),
        ("00 " * 21 + "0", b"00 " * 21 + b"0"),
        ("٣" * 64, "٣".encode() * 64),
        ("correct horse", b"correct horse"),
        ("süß \U0001f511", "süß \U0001f511".encode()),
        ("not utf-8: \udcff", b"not utf-8: \xff"),
    ],
)
def test_the_variable_is_a_token_or_a_passphrase(text: str, secret: bytes) -> None:
    """Exactly 64 hex digits are 32 bytes, all other text is its own UTF-8 bytes."""
    assert token.load(None, {"SOCKSTREAM_TOKEN": text}) == secret


def test_a_real_variable_keeps_its_bytes() -> None:
    """A passphrase that is not UTF-8 arrives as the bytes that the environment has."""
    code = "import sys; from sockstream import token; sys.stdout.buffer.write(token.load())"
    environ = {**os.environb, b"SOCKSTREAM_TOKEN": b"caf\xe9 \xf0\x9f"}
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True).stdout
    assert output == b"caf\xe9 \xf0\x9f"


def test_an_empty_variable_is_an_error() -> None:
    """An empty secret would let everybody in, and going on with the file would hide the mistake."""
    with pytest.raises(SockstreamError, match="SOCKSTREAM_TOKEN is set but empty"):
        token.load(None, {"SOCKSTREAM_TOKEN": "", "HOME": "/nonexistent"})


# Making the default file.


def test_first_use_makes_the_file(tmp_path: Path) -> None:
    """It holds 64 hex digits and a newline, mode 0600 in directories 0700, and is used from then on."""
    environ = {"HOME": str(tmp_path)}
    old_mask = os.umask(0)
    try:
        made = token.load(None, environ)
    finally:
        os.umask(old_mask)
    path = tmp_path / ".config" / "sockstream" / "token"
    assert (len(made), path.read_text()) == (32, made.hex() + "\n")
    assert [mode_of(each) for each in (path, path.parent, path.parent.parent)] == [0o600, 0o700, 0o700]
    assert os.listdir(path.parent) == ["token"]
    assert token.load(None, environ) == made == token.load(None, environ, create=False)


def test_two_homes_have_two_tokens(tmp_path: Path) -> None:
    """A token that is made is made of random bytes."""
    made = {token.load(None, {"HOME": f"{tmp_path}/{number}"}) for number in range(20)}
    assert len(made) == 20


def test_directories_that_exist_keep_their_modes(tmp_path: Path) -> None:
    """A configuration directory that the user made is left as it is."""
    directory = tmp_path / "sockstream"
    directory.mkdir()
    directory.chmod(0o750)
    token.load(None, {"XDG_CONFIG_HOME": str(tmp_path)})
    assert mode_of(directory) == 0o750


def test_nothing_is_made_when_it_must_not_be(tmp_path: Path) -> None:
    """With create=False a missing default file is an error that names it, and nothing appears."""
    with pytest.raises(SockstreamError) as caught:
        token.load(None, {"HOME": str(tmp_path)}, create=False)
    assert f"{tmp_path}/.config/sockstream/token" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_an_explicit_file_is_never_made(tmp_path: Path) -> None:
    """A named file that does not exist is an error that names it and says what to do."""
    path = str(tmp_path / "missing")
    message = refusal(path)
    assert f"there is no token file {path!r}" in message
    assert "--token-file" in message and "SOCKSTREAM_TOKEN" in message
    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """The message names the directory, the system's reason and the alternatives."""
    (tmp_path / "file").touch()
    with pytest.raises(SockstreamError) as caught:
        token.load(None, {"HOME": str(tmp_path / "file")})
    for words in (f"{tmp_path}/file/.config/", "Not a directory", "--token-file", "SOCKSTREAM_TOKEN"):
        assert words in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_dangling_link_is_not_followed_to_make_a_file(tmp_path: Path) -> None:
    """The file is not made at the far end of a link, where it may not belong."""
    directory = tmp_path / "sockstream"
    directory.mkdir()
    (directory / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SockstreamError, match="there is no token file"):
        token.load(None, {"XDG_CONFIG_HOME": str(tmp_path)})
    assert os.listdir(directory) == ["token"]
    assert not (tmp_path / "elsewhere").exists()


def test_many_first_users_agree_on_one_token(tmp_path: Path) -> None:
    """Processes that all come first at once get the same token, that in the file, and leave nothing else."""
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(first_user()) for _ in range(8)]
        for number in range(60):
            home = tmp_path / str(number)
            for user in users:
                print(home, file=user.stdin, flush=True)
            answers = {user.stdout.readline() for user in users if user.stdout}
            directory = home / ".config" / "sockstream"
            assert answers == {(directory / "token").read_text()}
            assert os.listdir(directory) == ["token"]


# Guarding the file.


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601, 0o660, 0o644, 0o666, 0o440])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    """Any right of group or others is refused; the message has the mode and the command that mends it."""
    path = token_file(tmp_path, mode=mode)
    message = refusal(path)
    assert f"(mode {mode:04o})" in message and f"chmod 600 {path!r}" in message
    subprocess.run(message[message.index("chmod") : message.index(", and use")], shell=True, check=True)
    assert token.load(path, {}) == TOKEN


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_the_owner_alone_is_taken(tmp_path: Path, mode: int) -> None:
    """What the owner may do with it does not matter."""
    assert token.load(token_file(tmp_path, mode=mode), {}) == TOKEN


def test_the_default_file_is_guarded_too(tmp_path: Path) -> None:
    """A default file that others can read is refused, not replaced by a new one."""
    environ = {"HOME": str(tmp_path)}
    path = token.store(HEX, None, environ)
    os.chmod(path, 0o644)
    with pytest.raises(SockstreamError, match="chmod 600"):
        token.load(None, environ)
    assert Path(path).read_text() == HEX + "\n"


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """The owner must be this user; the message names both."""
    path = "/etc/passwd"
    if os.geteuid() == 0:  # root's own; so give one away
        path = token_file(tmp_path)
        os.chown(path, 65534, -1)
    owner = os.stat(path).st_uid
    assert f"belongs to user id {owner}, not {os.geteuid()}" in refusal(path)


def test_a_link_is_judged_by_the_file_behind_it(tmp_path: Path) -> None:
    """A link to a private file is taken, one to a file open to others is refused."""
    path = token_file(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert token.load(str(link), {}) == TOKEN
    os.chmod(path, 0o644)
    assert "chmod 600" in refusal(str(link))


def test_a_pipe_is_taken(tmp_path: Path) -> None:
    """A token may come through a pipe, in several pieces, and so never touch the disk."""
    path = str(tmp_path / "fifo")
    os.mkfifo(path, 0o600)

    def write() -> None:
        with open(path, "w") as file:
            file.write(HEX[:10])
            file.flush()
            file.write(HEX[10:] + "\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert token.load(path, {}) == TOKEN
    finally:
        writer.join()


@pytest.mark.parametrize("end", ["\n", "", "\r\n", " \n\n"])
def test_the_end_of_the_line_does_not_matter(tmp_path: Path, end: str) -> None:
    """Editors and copies add or lose a line break; the token is the same."""
    assert token.load(token_file(tmp_path, HEX.upper() + end), {}) == TOKEN


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        HEX[:-1].encode(),
        HEX.encode() + b"0\n",
        b" " + HEX.encode(),
        HEX.encode() + b"\n" + HEX.encode(),
        HEX[:-1].encode() + b"g\n",
        HEX[:-1].encode() + b"\xb2\n",
        b"00 " * 21 + b"0",
        HEX.encode() + b"\0",
        b"my secret passphrase\n",
        HEX.encode() + b"\n" * 5000,
        b"\xff" * 64,
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """The message names the file and says what was expected; the file stays as it is."""
    path = token_file(tmp_path, content)
    message = refusal(path)
    assert repr(path) in message and "64 hex digits and a newline" in message
    assert Path(path).read_bytes() == content


def test_an_endless_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    """Reading stops just past the size of a token file: the writer of an endless pipe is cut off."""
    path = str(tmp_path / "fifo")
    os.mkfifo(path, 0o600)
    broken = threading.Event()

    def write() -> None:
        try:
            with open(path, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(65536))
        except BrokenPipeError:
            broken.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert "malformed" in refusal(path)
    finally:
        writer.join()
    assert broken.is_set()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/", "Is a directory"),
        ("a\0b", "null"),
        ("/x" * 5000, "too long"),
    ],
)
def test_what_cannot_be_read_is_told(path: str, reason: str) -> None:
    """Whatever stands in the way of reading is a SockstreamError with the reason."""
    message = refusal(path)
    assert "cannot read the token file" in message and reason in message


# No message shows a secret.


def everything_said(error: BaseException | None) -> str:
    """Return all that an error and those behind it carry, shown or not."""
    said = ""
    while error is not None:
        said += f"{error} {error.args!r} {vars(error)!r}\n"
        error = error.__context__
    return said


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8, max_size=200))
def test_no_secret_is_in_any_error(secret: str) -> None:
    """No malformed file, text to store or variable is shown in an error."""
    secret += "-"  # never a token
    home = os.environ["HOME"]
    path = token_file(Path(home), secret)
    attempts = (
        lambda: token.load(path, {}),
        lambda: token.store(secret, None, {"HOME": home}),
        lambda: token.load(None, {"SOCKSTREAM_TOKEN": secret + "\ud800"}),
    )
    for attempt in attempts:
        with pytest.raises(SockstreamError) as caught:
            attempt()
        assert secret not in everything_said(caught.value)


# Storing a token of another machine.


def test_store_writes_what_load_reads(tmp_path: Path) -> None:
    """What one machine shows with to_hex, the other stores and then uses."""
    first, second = {"HOME": f"{tmp_path}/1"}, {"HOME": f"{tmp_path}/2"}
    shown = token.to_hex(token.load(None, first))
    path = token.store(f"  {shown.upper()}\n", None, second)
    assert path == token.default_path(second)
    assert token.load(None, second) == token.load(None, first)
    assert mode_of(path) == 0o600 and mode_of(os.path.dirname(path)) == 0o700
    assert os.listdir(os.path.dirname(path)) == ["token"]


def test_store_to_an_explicit_file(tmp_path: Path) -> None:
    """A named file is written where it is named, private; its directory is not made."""
    path = str(tmp_path / "mine")
    assert token.store(HEX, path, {}) == path
    assert (token.load(path, {}), mode_of(path)) == (TOKEN, 0o600)
    with pytest.raises(SockstreamError, match="No such file or directory"):
        token.store(HEX, str(tmp_path / "missing" / "mine"), {})
    assert os.listdir(tmp_path) == ["mine"]


def test_store_works_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without a directory is a file here."""
    monkeypatch.chdir(tmp_path)
    token.store(HEX, "mine", {})
    assert token.load("mine", {}) == TOKEN
    assert os.listdir(tmp_path) == ["mine"]


def test_store_keeps_a_different_token(tmp_path: Path) -> None:
    """Another token is overwritten only when that is asked for; the same one is no error."""
    path = str(tmp_path / "mine")
    token.store(HEX, path)
    assert token.store(HEX, path) == path
    with pytest.raises(SockstreamError, match="holds another token"):
        token.store(OTHER_HEX, path)
    assert token.load(path, {}) == TOKEN
    token.store(OTHER_HEX, path, replace=True)
    assert token.load(path, {}) == bytes(32)
    assert os.listdir(tmp_path) == ["mine"]


def test_store_replaces_a_bad_file_only_when_asked(tmp_path: Path) -> None:
    """A malformed file or one open to others is told as such, and mended by replacing it."""
    path = token_file(tmp_path, "nonsense", 0o644)
    with pytest.raises(SockstreamError, match="chmod 600"):
        token.store(HEX, path)
    assert Path(path).read_text() == "nonsense"
    token.store(HEX, path, replace=True)
    assert (token.load(path, {}), mode_of(path)) == (TOKEN, 0o600)


def test_store_does_not_replace_a_directory(tmp_path: Path) -> None:
    """What cannot be replaced is told, and no temporary file stays."""
    (tmp_path / "directory").mkdir()
    with pytest.raises(SockstreamError, match="cannot make token file"):
        token.store(HEX, str(tmp_path / "directory"), replace=True)
    assert os.listdir(tmp_path) == ["directory"]


@pytest.mark.parametrize("text", ["", HEX[:-1], HEX + "0", "x" * 64, "00 " * 21 + "0", "a passphrase"])
def test_store_refuses_what_is_no_token(tmp_path: Path, text: str) -> None:
    """Anything but 64 hex digits is refused before a file or directory is touched."""
    with pytest.raises(SockstreamError, match="64 hex digits"):
        token.store(text, None, {"HOME": str(tmp_path)}, replace=True)
    assert os.listdir(tmp_path) == []


def test_to_hex_refuses_a_passphrase() -> None:
    """A passphrase has no form that `store` would take, so none is shown."""
    assert token.to_hex(TOKEN) == HEX
    with pytest.raises(SockstreamError, match="passphrase") as caught:
        token.to_hex(b"correct horse")
    assert "horse" not in everything_said(caught.value)
