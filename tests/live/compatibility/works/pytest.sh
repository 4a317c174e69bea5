# Run a suite with fixtures, parameters, a temporary directory and captured output.
cat >test_suite.py <<'PYTHON'
import pytest


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("text")
    return path


def test_a_fixture(file):
    assert file.read_text() == "text"


@pytest.mark.parametrize("number", range(10))
def test_parameters(number):
    assert number < 10


def test_captured_output(capfd):
    print("heard")
    assert capfd.readouterr().out == "heard\n"


def test_a_failure():
    assert 1 == 2
PYTHON
python3 -m pytest -q >log && exit 1
grep -q '^1 failed, 12 passed' log
