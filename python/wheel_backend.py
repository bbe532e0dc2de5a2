"""Makes the wheel: the package, libmoec.so beside it, and the moec command. A PEP 517 build backend without dependencies.

    pip install ./python                     uses $MOEC_BUILD_DIR or ../build when they hold a build, else builds
    python3 python/wheel_backend.py OUT      writes the wheel into OUT and prints its name

The wheel is py3-none-<platform>: it holds no code that depends on Python's version. libmoec.so is linked to the system's libLLVM, which
the wheel does not bring.
"""
import base64
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
METADATA = """Metadata-Version: 2.1
Name: moec
Version: {version}
Summary: A compiler for mixture-of-experts models: layers for training and inference
Requires-Python: >=3.9
Description-Content-Type: text/markdown

{readme}"""
WHEEL = "Wheel-Version: 1.0\nGenerator: moec wheel_backend\nRoot-Is-Purelib: false\nTag: {tag}\n"


def version():
    return re.search(r'^__version__ = "(.*)"$', (HERE / "moec" / "__init__.py").read_text(), re.M).group(1)


def platform_tag():
    return "py3-none-" + re.sub(r"[^A-Za-z0-9]", "_", sysconfig.get_platform())


def built():
    """The folder of a build that has the library and the command; made if there is none."""
    named = os.environ.get("MOEC_BUILD_DIR")
    folders = [pathlib.Path(named)] if named else [ROOT / "build", ROOT / "build" / "release"]
    for folder in folders:
        if (folder / "libmoec.so").exists() and (folder / "moec").exists():
            return folder
    folder = folders[0]
    for command in (["cmake", "-S", str(ROOT), "-B", str(folder), "-DMOEC_TESTS=OFF"],
                    ["cmake", "--build", str(folder), "--target", "libmoec", "moec", "--parallel"]):
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def contents(folder, info):
    """(name in the wheel, bytes, executable)"""
    for path in sorted((HERE / "moec").iterdir()):
        if path.suffix in (".py", ".pyi", ".typed") or path.name == "py.typed":
            yield f"moec/{path.name}", path.read_bytes(), False
    yield "moec/libmoec.so", (folder / "libmoec.so").read_bytes(), True
    yield f"moec-{version()}.data/scripts/moec", (folder / "moec").read_bytes(), True
    yield f"{info}/METADATA", METADATA.format(version=version(), readme=(HERE / "README.md").read_text()).encode(), False
    yield f"{info}/WHEEL", WHEEL.format(tag=platform_tag()).encode(), False


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    folder = built()
    info = f"moec-{version()}.dist-info"
    name = f"moec-{version()}-{platform_tag()}.whl"
    record = []
    path = pathlib.Path(wheel_directory) / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        def put(entry, data, executable):
            # the same bytes for the same build: no times in it
            about = zipfile.ZipInfo(entry, (1980, 1, 1, 0, 0, 0))
            about.external_attr = (0o100755 if executable else 0o100644) << 16
            about.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(about, data)

        for entry, data, executable in contents(folder, info):
            put(entry, data, executable)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{entry},sha256={digest},{len(data)}")
        put(f"{info}/RECORD", ("\n".join(record + [f"{info}/RECORD,,"]) + "\n").encode(), False)
    return name


def get_requires_for_build_wheel(config_settings=None):
    return []


def build_sdist(sdist_directory, config_settings=None):
    raise RuntimeError("moec's Python package is built from moec's source tree; there is no sdist of it alone")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: wheel_backend.py OUT")
    pathlib.Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    print(build_wheel(sys.argv[1]))
