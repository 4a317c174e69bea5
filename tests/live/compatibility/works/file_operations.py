"""Links, renames, modes, times, extended attributes and copies in the kernel."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

Path("file").write_text("text")
Path("hard").hardlink_to("file")
Path("soft").symlink_to("file")
assert Path("hard").samefile("file")
assert Path("file").stat().st_nlink == 2
assert str(Path("soft").readlink()) == "file"
assert Path("soft").read_text() == "text"

Path("other").write_text("other")
Path("file").replace("other")
assert Path("other").read_text() == "text"
Path("directory/below").mkdir(parents=True)
Path("directory").rename("renamed")
assert Path("renamed/below").is_dir()

Path("hard").chmod(0o640)
assert Path("other").stat().st_mode & 0o777 == 0o640
os.utime("hard", ns=(1, 2_000_000_003))
assert Path("hard").stat().st_mtime_ns == 2_000_000_003
os.setxattr("hard", "user.key", b"value")
assert os.getxattr("hard", "user.key") == b"value"
os.mkfifo("fifo")
assert Path("fifo").is_fifo()

with Path("allocated").open("wb") as allocated:
    os.posix_fallocate(allocated.fileno(), 0, 4096)
assert Path("allocated").stat().st_size == 4096
with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
    source.write(b"0123456789")
    source.flush()
    assert os.sendfile(target.fileno(), source.fileno(), 0, 5) == 5
    reading, writing = os.pipe()
    assert os.splice(source.fileno(), writing, 5, offset_src=5) == 5
    assert os.splice(reading, target.fileno(), 5, offset_dst=5) == 5
    assert os.pread(target.fileno(), 10, 0) == b"0123456789"
os.sync()
