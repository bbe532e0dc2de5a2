"""examples/torch_training: twenty steps; the losses of both models stay together."""
import os
import re
import subprocess
import sys
import unittest

import common

common.need("torch", "transformers")


class Example(unittest.TestCase):
    def test_losses_stay_together(self):
        env = {**os.environ, "PYTHONPATH": os.path.join(common.ROOT, "python")}
        script = os.path.join(common.ROOT, "examples", "torch_training", "train.py")
        done = subprocess.run([sys.executable, script, "--steps", "20"], env=env, capture_output=True, text=True, timeout=800)
        print(done.stdout, file=sys.stderr)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        worst = float(re.search(r"greatest difference of the losses in a step: (\S+)", done.stdout).group(1))
        self.assertLessEqual(worst, 1e-4)
        self.assertEqual(len(re.findall(r"ms a step", done.stdout)), 2)
        losses = [float(v) for v in re.findall(r"moec (\d+\.\d+)", done.stdout)]
        self.assertLess(losses[-1], losses[0] - 1)  # it learns


if __name__ == "__main__":
    common.main()
