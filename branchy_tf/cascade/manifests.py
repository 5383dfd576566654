r"""Writes Kubernetes manifests and a Compose file that carry a placement out.

Example:

  python -m branchy_tf.cascade manifests --topology=topology.yaml --units=units \
    --placement=placement.json --manifests_dir=manifests

It writes kubernetes.yaml, docker-compose.yml, and a folder for each server and gateway
with its models.config or cascade.yaml.
"""

from absl import flags, logging

from branchy_tf import command_line, files
from branchy_tf.units import placing
from branchy_tf.units.placing import manifests

FLAGS = flags.FLAGS

command_line.define_topology()
command_line.define_path("placement", "placement.json", "The placement to carry out.")
command_line.define_path("manifests_dir", "manifests", "The folder to write to.")
flags.DEFINE_string("serving_image", manifests.SERVING_IMAGE, "The image of TF Serving.")
flags.DEFINE_string(
    "gateway_image",
    manifests.GATEWAY_IMAGE,
    "The image of the gateway, with branchy_tf[cascade] installed.",
)


def main() -> None:
    topology = command_line.chosen_topology()
    paths = manifests.write(
        placing.load_placement(files.path(FLAGS.placement)),
        topology,
        FLAGS.manifests_dir,
        serving_image=FLAGS.serving_image,
        gateway_image=FLAGS.gateway_image,
    )
    logging.info("Wrote %d files to %s.", len(paths), FLAGS.manifests_dir)


if __name__ == "__main__":
    command_line.run(main)
