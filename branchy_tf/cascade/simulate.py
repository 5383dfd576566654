r"""Runs the demand through a placement: latencies, power, traffic and utilisation.

Example:

  python -m branchy_tf.cascade simulate --topology=topology.yaml --units=units \
    --placement=placement.json

It simulates every row and writes what happened to a simulation.json.
"""

from absl import flags, logging
from tabulate import tabulate

from branchy_tf import command_line, files
from branchy_tf.units import placing
from branchy_tf.units.placing import simulating

FLAGS = flags.FLAGS

command_line.define_topology()
command_line.define_path("placement", "placement.json", "The placement to run.")
command_line.define_path("simulation", "simulation.json", "The file to write.")
flags.DEFINE_integer(
    "rows", 20_000, "How many rows arrive; the first tenth does not count.", 100
)
command_line.define_seed(default=0)
# Lines in a table.
_MOST = 20


def main() -> None:
    topology = command_line.chosen_topology()
    placement = placing.load_placement(files.path(FLAGS.placement))
    found = simulating.simulate(placement, topology, rows=FLAGS.rows, seed=FLAGS.seed)
    found.save(files.path(FLAGS.simulation))
    print(tabulate(list(found.demands)[:_MOST], headers="keys", floatfmt=".4g"))
    busy = [
        {
            "site": name,
            "utilisation": site["utilisation"],
            "W": site["watts"],
            "units": ", ".join(f"{u} {x:.1%}" for u, x in site["units"].items()),
        }
        for name, site in found.sites.items()
        if site["units"]
    ]
    print(f"\n{tabulate(busy[:_MOST], headers='keys', floatfmt='.4g')}")
    print(
        f"\nMean {found.mean_ms:.4g} ms, expected {placement.latency_ms:.4g} ms; median "
        f"{found.p50_ms:.4g} ms, 99 % below {found.p99_ms:.4g} ms. {found.watts:.4g} W, "
        f"{found.bytes / found.rows:.4g} bytes on links per row."
    )
    logging.info("Wrote %s.", FLAGS.simulation)


if __name__ == "__main__":
    command_line.run(main)
