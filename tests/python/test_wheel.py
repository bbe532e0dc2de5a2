"""The wheel: made by pip from the source tree, installed into an empty environment, used from there without anything else."""
import os
import subprocess
import sys
import tempfile
import unittest
import zipfile

import common

if "MOEC_BUILD_DIR" not in os.environ:
    print("skipped: test_wheel.py needs MOEC_BUILD_DIR, a build with libmoec.so and moec")
    sys.exit(common.SKIPPED)
common.need("venv", "ensurepip")

USE = """
import os, moec
assert os.path.dirname(moec.library_path()) == os.path.dirname(moec.__file__), moec.library_path()
layer = moec.layer(moec.texts.moe(8, 8, 4, 2))
step = layer.forward([moec.tensor([[0.5] * 8] * 3)], [moec.empty(p.shape) for p in layer.params])
print(moec.__version__, sum(next(v for k, v in step.outputs.items() if k.endswith("load")).tolist()[0]))
"""


class Wheel(unittest.TestCase):
    def run_in(self, folder, *command):
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MOEC_LIBRARY")}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_install_and_use(self):
        with tempfile.TemporaryDirectory() as folder:
            venv = os.path.join(folder, "venv")
            self.run_in(folder, sys.executable, "-m", "venv", venv)
            python = os.path.join(venv, "bin", "python")
            made = self.run_in(folder, python, os.path.join(common.ROOT, "python", "wheel_backend.py"), folder).strip()
            self.assertRegex(made, r"^moec-[0-9.]+-py3-none-linux_\w+\.whl$")
            first = open(os.path.join(folder, made), "rb").read()
            self.run_in(folder, python, os.path.join(common.ROOT, "python", "wheel_backend.py"), folder)
            self.assertEqual(first, open(os.path.join(folder, made), "rb").read())  # the same bytes again
            self.assertNotIn("moec/torch.pyc", zipfile.ZipFile(os.path.join(folder, made)).namelist())
            self.run_in(folder, python, "-m", "pip", "install", "--no-index", "--disable-pip-version-check", made)
            self.assertEqual(self.run_in(folder, python, "-c", USE).split(), ["0.1.0", "6.0"])
            self.assertIn("0.1.0", self.run_in(folder, os.path.join(venv, "bin", "moec"), "--version"))
            self.run_in(folder, python, "-m", "pip", "uninstall", "-y", "moec")

    def test_pip_builds_it(self):
        with tempfile.TemporaryDirectory() as folder:
            venv = os.path.join(folder, "venv")
            self.run_in(folder, sys.executable, "-m", "venv", venv)
            python = os.path.join(venv, "bin", "python")
            self.run_in(folder, python, "-m", "pip", "install", "--no-index", "--disable-pip-version-check", os.path.join(common.ROOT, "python"))
            self.assertEqual(self.run_in(folder, python, "-c", USE).split(), ["0.1.0", "6.0"])


if __name__ == "__main__":
    common.main()
