"""Cuts a network into units, and serves them as one model; has commands of its own.

Example:

  python -m branchy_tf.cascade export --run_dir=runs/lenet --at=exit_1 --export_dir=units
  python -m branchy_tf.cascade serve --config=units/cascade.yaml --port=8500
"""

import sys

from branchy_tf.command_line import listing, startup

if __name__ == "__main__":
    startup.ready()
    name = startup.as_typed("python -m branchy_tf.cascade")
    sys.exit(listing.run("branchy_tf.cascade", name))
