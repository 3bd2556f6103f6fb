# Shortcuts for people who work on vfm. The README's two commands need no make.
.PHONY: test check format packages kill-test kernels-wide

test: ## all that CI runs
	uv run pytest -n 2

check: ## style, types, architecture
	uv run ruff format --check . && uv run ruff check . && uv run mypy && uv run lint-imports

format:
	uv run ruff format . && uv run ruff check --fix .

packages: ## every package's own tests, alone in an environment of its own
	for package in core kernels curation eva clip diva; do \
		uv run --isolated --package vfm-$$package pytest packages/$$package || exit 1; done

kill-test: ## twenty random kills of a recipe with every kind of stage
	VFM_NUM_KILLS=20 uv run pytest tests/test_kill_and_resume.py -s

kernels-wide: ## Triton's interpreter at real shapes (minutes)
	TRITON_INTERPRET=1 uv run pytest packages/kernels/tests/interpreter -m slow -n 2
