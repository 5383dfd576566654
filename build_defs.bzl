"""What the BUILD files of branchy_tf repeat: libraries, commands and tests."""

load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

COMMANDS = [
    "benchmark",
    "calibrate",
    "compress",
    "demo",
    "evaluate",
    "export",
    "measure",
    "play",
    "predict",
    "serve",
    "train",
]

# Test files that took more than 25 seconds, each alone on 2 busy cores, are medium; more
# than 150, large. Bazel gives a small test 60, a medium one 300 and a large one 900.
SIZES = {
    "tests/benchmarking/test_processes": "medium",
    "tests/exits/test_adding": "medium",
    "tests/load/test_fuzz_files": "medium",
    "tests/load/test_under_load": "large",
    "tests/saved_model/test_applications": "medium",
    "tests/saved_model/test_bfloat16": "medium",
    "tests/saved_model/test_c_api": "medium",
    "tests/saved_model/test_requests": "medium",
    "tests/saved_model/test_routing": "medium",
    "tests/saved_model/test_writing": "medium",
    "tests/serving/test_batching": "medium",
    "tests/serving/test_channels": "medium",
    "tests/serving/test_client": "medium",
    "tests/serving/test_embedded_server": "medium",
    "tests/serving/test_every_backend": "medium",
    "tests/serving/test_front": "medium",
    "tests/serving/test_load_command": "medium",
    "tests/serving/test_predict_command": "medium",
    "tests/serving/test_serve_command": "medium",
    "tests/serving/test_served_versions": "large",
    "tests/serving/test_tuned_thresholds": "large",
    "tests/studies/test_growth_study": "medium",
    "tests/studies/test_guarantee_study": "medium",
    "tests/studies/test_routing_study": "medium",
    "tests/studies/test_training_study": "medium",
    "tests/test_benchmark": "large",
    "tests/test_calibrate": "medium",
    "tests/test_demo": "large",
    "tests/test_evaluate": "medium",
    "tests/test_keras_files": "medium",
    "tests/test_layout": "medium",
    "tests/test_measure": "medium",
    "tests/test_readme": "large",
    "tests/test_startup": "medium",
    "tests/test_train": "large",
    "tests/test_wrong_arguments": "medium",
    "tests/thresholds/test_guarantee": "medium",
    "tests/training/test_callbacks": "medium",
    "tests/training/test_modes": "medium",
    "tests/training/test_phases": "medium",
    "tests/zoo/test_every_model": "medium",
    "tests/zoo/test_packaged": "medium",
    "tests/zoo/test_recorded_answers": "medium",
}

def branchy_library(name, deps = [], visibility = ["//:__subpackages__"], **kwargs):
    """A module, or all modules of a folder.

    Args:
      name: the module; or the folder, and then every module in it.
      deps: what they import. //branchy_tf:base, and with it numpy, is always there.
      visibility: the project alone, where nothing else is said.
      **kwargs: further attributes of py_library.
    """
    is_folder = name == native.package_name().split("/")[-1]
    py_library(
        name = name,
        srcs = native.glob(["*.py"]) if is_folder else [name + ".py"],
        visibility = visibility,
        deps = deps + ["//branchy_tf:base"],
        **kwargs
    )

def branchy_command(name, library, module = None):
    """A module that runs: `bazel run LABEL -- --flag=value ...`.

    Args:
      name: the command.
      library: what the module belongs to.
      module: its file; NAME.py where nothing else is said.
    """
    py_binary(
        name = name,
        srcs = [module or name + ".py"],
        legacy_create_init = 0,
        main = module or name + ".py",
        visibility = ["//visibility:public"],
        deps = [library],
    )

def branchy_tests(name, tags = {}, deps = ["//tests:support"], data = []):
    """The tests of a folder: a py_test for each test file, under pytest.

    Beside them stand :support, the folder's other modules, and a suite of the tests.

    Args:
      name: the suite.
      tags: {test: tags}.
      deps: what :support needs, and with it the tests.
      data: the files they read.
    """
    files = native.glob(["test_*.py"])
    tests = [file[:-len(".py")] for file in files]
    for test in tags:
        if test not in tests:
            fail("There is no %s.py in %s." % (test, native.package_name()))

    py_library(
        name = "support",
        testonly = True,
        srcs = native.glob(
            ["*.py"],
            allow_empty = True,
            exclude = files + ["bazel_main.py"],
        ),
        data = data,
        imports = ["."],
        visibility = ["//tests:__subpackages__"],
        deps = deps,
    )

    for test in tests:
        py_test(
            name = test,
            size = SIZES.get(native.package_name() + "/" + test, "small"),
            srcs = [test + ".py", "//tests:bazel_main.py"],
            args = ["%s/%s.py" % (native.package_name(), test)],
            legacy_create_init = 0,
            main = "//tests:bazel_main.py",
            tags = tags.get(test, []),
            deps = [":support"],
        )

    native.test_suite(
        name = name,
        tests = tests,
        visibility = ["//:__subpackages__"],
    )
