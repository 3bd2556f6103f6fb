# Shortcuts for people who work on vfm. The README's two commands need no make.
.PHONY: test check format packages kill-test kernels-wide test-torch-latest

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

test-torch-latest: ## the kernels' tests on the newest torch and Triton, in an environment of their own (some GB)
	uv run --isolated --no-project --no-config --with torch --with triton --with pytest --with pytest-xdist --with hypothesis \
		--with-editable "packages/core[torch,report]" --with-editable packages/kernels \
		--with-editable packages/eva --with-editable packages/clip \
		pytest -n 2 -rx packages/kernels packages/core/tests/test_train_kernels.py \
		packages/eva/tests/test_kernels.py packages/eva/tests/test_padding.py \
		packages/clip/tests/test_kernels.py packages/clip/tests/test_padding.py
