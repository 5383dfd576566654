"""A topology of two sites."""

TEXT = """\
units:
  device: {macs: 4e5, memory_mb: 2, input_bytes: 784, output_bytes: 4500}
  cloud: {macs: 3e6, memory_mb: 12, input_bytes: 4500}
cascades:
  digits: {units: [device, cloud], exit_rates: [0.7, 0.3]}
sites:
  camera: {cores: 1, ms: {device: 4.1}, memory_mb: 64, watts: 3, watts_per_core: 2.5}
  hall: {cores: 8, macs_per_s: 2e9, watts_per_core: 12}
links:
  - {between: [camera, hall], latency_ms: 3, mbit_per_s: 20, joules_per_mb: 0.4}
demand:
  - {cascade: digits, site: camera, per_second: 15}
"""
