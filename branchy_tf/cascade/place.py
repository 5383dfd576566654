r"""Decides at which site each unit runs: least latency within power and memory.

Example:

  python -m branchy_tf.cascade place --topology=topology.yaml --units=units

It reads the sites, links and demand from the topology, and what the units cost from the
folder that `cascade export` wrote, or from the topology. It writes a placement.json,
prints where each unit runs, and says what another watt or Mbit/s would gain.
"""

from absl import flags, logging
from tabulate import tabulate

from branchy_tf import command_line, files
from branchy_tf.units import placing
from branchy_tf.units.placing import Placement

FLAGS = flags.FLAGS

command_line.define_topology()
command_line.define_path("placement", "placement.json", "The file to write.")
flags.DEFINE_float(
    "seconds", placing.SECONDS, "Stops the search for a better placement after that many."
)
flags.DEFINE_float(
    "gap",
    placing.GAP,
    "Takes a placement of a large topology that is that close to the bound, as a "
    "fraction of it. Small ones are solved exactly.",
)
# Lines in a table.
_MOST = 20
_UNITS = {"bandwidth": "Mbit/s", "cores": "core", "memory": "MB"}


def main() -> None:
    placement = placing.place(
        None, command_line.chosen_topology(), seconds=FLAGS.seconds, gap=FLAGS.gap
    )
    placement.save(files.path(FLAGS.placement))
    print(_assignments(placement))
    print(f"\n{_summary(placement)}")
    if placement.gains:
        print(f"\n{_gains(placement)}")
    logging.info("Wrote %s.", FLAGS.placement)


def _assignments(placement: Placement) -> str:
    rows = [
        {
            "cascade": entry.cascade,
            "from": entry.site,
            "rows/s": entry.per_second,
            "units": ", ".join(f"{unit}: {site}" for unit, site in entry.units.items()),
            "ms": entry.latency_ms,
        }
        for entry in placement.assignments
    ]
    return _table(rows)


def _summary(placement: Placement) -> str:
    best = (
        "No placement has a lower objective"
        if placement.optimal
        else f"Within {placement.gap:.2%} of the bound"
    )
    return (
        f"Mean latency {placement.latency_ms:.4g} ms, {placement.watts:.4g} W. {best} "
        f"({placement.objective_ms:.4g} ms, bound {placement.bound_ms:.4g} ms)."
    )


def _gains(placement: Placement) -> str:
    rows = [
        {
            "limit": f"{gain.kind} {gain.where}".strip().replace("_", " "),
            "used": gain.used,
            "of": gain.most,
            "binding": "yes" if gain.binding else "",
            "one more saves, ms": gain.ms_per_unit,
            "one more": _UNITS.get(gain.kind, "W"),
        }
        for gain in placement.gains
    ]
    return _table(rows)


def _table(rows: list[dict]) -> str:
    text = tabulate(rows[:_MOST], headers="keys", floatfmt=".4g")
    more = len(rows) - _MOST
    return f"{text}\n... and {more} more" if more > 0 else text


if __name__ == "__main__":
    command_line.run(main)
