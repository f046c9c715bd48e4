# The two commands of the README. Both make .venv first, and again when what it is made from changes.
.PHONY: demo test setup lint docs linkcheck clean

demo: setup          ## checkpoint -> verified ONNX file -> prediction on an image
	scripts/demo

test: .venv/.ready $(wildcard cpp_plugins/lib/.ready)   ## the whole test suite: format, lint, types, tests
	scripts/test

lint: .venv/.ready   ## its first part alone: format, lint, types
	scripts/lint

setup: .venv/.ready cpp_plugins/lib/.ready   ## .venv, and the native library where there is a compiler

cpp_plugins/lib/.ready: .venv/.ready scripts/native $(wildcard cpp_plugins/CMakeLists.txt cpp_plugins/*/*.h cpp_plugins/*/*.cpp cpp_plugins/*/*.cuh)
	scripts/native

.venv/.ready: pyproject.toml constraints.txt setup.py scripts/setup
	scripts/setup

docs: .venv/.ready   ## the documentation site, in docs/_build/html, without a network
	.venv/bin/python -m docs.site

linkcheck: .venv/.ready   ## whether the documents' links to other sites lead somewhere; needs a network
	.venv/bin/python -m docs.site linkcheck

clean:               ## everything that was made here
	rm -rf .venv cpp_plugins/lib demo build dist docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
