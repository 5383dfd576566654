"""What the BUILD files of branchy_tf repeat: libraries, commands and tests."""

load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

COMMANDS = [
    "benchmark",
    "calibrate",
    "demo",
    "evaluate",
    "export",
    "measure",
    "predict",
    "serve",
    "train",
]

# Tests that take more than 20 seconds on 2 cores, or more than 100. Bazel gives a small
# one 60, a medium one 300 and a large one 900.
SIZES = {
    "tests/benchmarking/test_processes": "medium",
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
