# Make a virtual environment; build a package that brings its build backend; install and run it.
mkdir greet
cat >greet/pyproject.toml <<'TOML'
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
TOML
cat >greet/backend.py <<'PYTHON'
import zipfile

FILES = {
    "greet.py": "def main():\n    print('Hello pip')\n",
    "greet-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: greet\nVersion: 1\n",
    "greet-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "greet-1.dist-info/entry_points.txt": "[console_scripts]\ngreet = greet:main\n",
}


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = "greet-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
        for path, text in FILES.items():
            wheel.writestr(path, text)
        record = "".join(f"{path},,\n" for path in FILES)
        wheel.writestr("greet-1.dist-info/RECORD", record)
    return name
PYTHON
python3 -m venv --without-pip venv
pip --python venv --quiet --disable-pip-version-check --no-cache-dir install --no-index ./greet
[ "$(venv/bin/greet)" = 'Hello pip' ]
